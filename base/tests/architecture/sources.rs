//! The workspace's sources: which file names which path, and which file imports which.
//!
//! Tests within a source are left out: they may name what they like. A path is followed to the file of the module that it
//! names; a re-export counts as the file that re-exports.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use syn::{Attribute, Item, UseTree};

/// A crate of the workspace.
pub struct Crate {
    /// Its files, tests left out.
    pub files: Vec<Source>,
}

/// A file.
pub struct Source {
    /// From the root of the checkout.
    pub path: String,
    /// All paths of more than one segment, and the first segments of imports.
    pub names: BTreeSet<String>,
    /// All identifiers.
    pub words: BTreeSet<String>,
    /// Where it is in the crate's tree of modules.
    module: Vec<String>,
    /// Modules that are files of their own.
    children: Vec<String>,
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("base is a folder of the workspace").to_owned()
}

/// All crates; a binary counts as one of its own. Reading them takes seconds, so the tests share them.
pub fn crates() -> &'static [Crate] {
    static CRATES: LazyLock<Vec<Crate>> = LazyLock::new(read_crates);
    &CRATES
}

fn read_crates() -> Vec<Crate> {
    let mut folders: Vec<PathBuf> = fs::read_dir(root()).expect("the checkout").flatten().map(|entry| entry.path()).collect();
    folders.push(root().join("examples/rust"));
    folders.sort();
    let mut crates = Vec::new();
    for folder in folders.iter().filter(|folder| folder.join("Cargo.toml").is_file()) {
        for entry in entries(&folder.join("src")) {
            let mut files = Vec::new();
            read(&entry, Vec::new(), true, &mut files);
            crates.push(Crate { files });
        }
    }
    assert!(crates.len() > 15, "the workspace has moved: found {} crates", crates.len());
    crates
}

/// The files that rustc begins with.
fn entries(src: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = ["lib.rs", "main.rs"].map(|name| src.join(name)).into();
    if let Ok(bins) = fs::read_dir(src.join("bin")) {
        for bin in bins.flatten().map(|entry| entry.path()) {
            found.push(if bin.is_dir() { bin.join("main.rs") } else { bin });
        }
    }
    found.retain(|path| path.is_file());
    found
}

fn read(path: &Path, module: Vec<String>, is_root: bool, files: &mut Vec<Source>) {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let items = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())).items;
    let mut source = Source {
        path: path.strip_prefix(root()).expect("a path of the checkout").display().to_string(),
        names: BTreeSet::new(),
        words: BTreeSet::new(),
        module: module.clone(),
        children: Vec::new(),
    };
    collect(&items, &mut source);
    // `a/mod.rs` and a root have their modules beside them, `a.rs` has them in `a/`.
    let beside = is_root || path.file_name().is_some_and(|name| name == "mod.rs");
    let folder = if beside { path.parent().expect("a file is in a folder").to_owned() } else { path.with_extension("") };
    let children = source.children.clone();
    files.push(source);
    for child in children {
        let file = [folder.join(format!("{child}.rs")), folder.join(&child).join("mod.rs")].into_iter().find(|p| p.is_file());
        let file = file.unwrap_or_else(|| panic!("{}: no file of mod {child}", path.display()));
        let module = [module.as_slice(), &[child]].concat();
        read(&file, module, false, files);
    }
}

fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|a| a.path().is_ident("cfg") && a.to_token_stream().to_string().contains("test"))
}

fn collect(items: &[Item], source: &mut Source) {
    for item in items {
        match item {
            Item::Mod(inner) if for_tests(&inner.attrs) => {}
            Item::Mod(inner) => match &inner.content {
                Some((_, items)) => collect(items, source),
                None => source.children.push(inner.ident.to_string()),
            },
            Item::Use(import) if !for_tests(&import.attrs) => {
                let mut paths = Vec::new();
                expand(&import.tree, &mut Vec::new(), &mut paths);
                for path in paths {
                    source.words.extend(path.split("::").map(str::to_owned));
                    source.names.insert(path);
                }
            }
            Item::Fn(function) if for_tests(&function.attrs) => {}
            other => {
                let tests = match other {
                    Item::Impl(item) => for_tests(&item.attrs),
                    Item::Struct(item) => for_tests(&item.attrs),
                    Item::Const(item) => for_tests(&item.attrs),
                    _ => false,
                };
                if !tests {
                    scan(other.to_token_stream(), source);
                }
            }
        }
    }
}

fn expand(tree: &UseTree, prefix: &mut Vec<String>, paths: &mut Vec<String>) {
    let whole = |prefix: &[String], last: String| [prefix, &[last]].concat().join("::");
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            expand(&path.tree, prefix, paths);
            prefix.pop();
        }
        UseTree::Name(name) if name.ident == "self" => paths.push(prefix.join("::")),
        UseTree::Name(name) => paths.push(whole(prefix, name.ident.to_string())),
        UseTree::Rename(rename) => paths.push(whole(prefix, rename.ident.to_string())),
        UseTree::Glob(_) => paths.push(prefix.join("::")),
        UseTree::Group(group) => group.items.iter().for_each(|tree| expand(tree, prefix, paths)),
    }
}

/// Paths in code, macros included: identifiers joined by `::`.
fn scan(tokens: TokenStream, source: &mut Source) {
    let mut path: Vec<String> = Vec::new();
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                let ident = ident.to_string();
                source.words.insert(ident.clone());
                if colons != 2 {
                    end(&mut path, source);
                }
                path.push(ident);
                colons = 0;
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => colons += 1,
            other => {
                end(&mut path, source);
                colons = 0;
                if let TokenTree::Group(group) = other {
                    scan(group.stream(), source);
                }
            }
        }
    }
    end(&mut path, source);
}

fn end(path: &mut Vec<String>, source: &mut Source) {
    if path.len() > 1 {
        source.names.insert(path.join("::"));
    }
    path.clear();
}

/// Which file imports which, and one of the paths by which it does.
fn imports(files: &[Source]) -> BTreeMap<&str, BTreeMap<&str, &str>> {
    let by_module: BTreeMap<&[String], &Source> = files.iter().map(|file| (file.module.as_slice(), file)).collect();
    let mut imports: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for file in files {
        for name in &file.names {
            if let Some(target) = resolve(file, name, &by_module).filter(|target| target.path != file.path) {
                imports.entry(&file.path).or_default().entry(&target.path).or_insert(name);
            }
        }
    }
    imports
}

/// The file of the module that a path leads to; `None` for what is another crate's, or of this file.
fn resolve<'a>(file: &Source, name: &str, by_module: &BTreeMap<&[String], &'a Source>) -> Option<&'a Source> {
    let mut segments = name.split("::").peekable();
    let mut module: Vec<String> = match *segments.peek()? {
        "crate" => Vec::new(),
        "self" | "super" => file.module.clone(),
        child if file.children.iter().any(|known| known == child) => file.module.clone(),
        _ => return None,
    };
    while let Some(word) = segments.next_if(|word| matches!(*word, "crate" | "self" | "super")) {
        if word == "super" {
            module.pop();
        }
    }
    let mut found = by_module.get(module.as_slice()).copied()?;
    for segment in segments {
        module.push(segment.to_owned());
        match by_module.get(module.as_slice()) {
            Some(deeper) => found = deeper,
            None => break,
        }
    }
    Some(found)
}

/// Each circle of a crate once, with the paths that tie it.
pub fn circles(of: &Crate) -> Vec<String> {
    let imports = imports(&of.files);
    let reach = |from: &str| -> BTreeSet<String> {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(file) = next.pop() {
            for target in imports.get(file.as_str()).into_iter().flat_map(BTreeMap::keys) {
                if seen.insert((*target).to_owned()) {
                    next.push((*target).to_owned());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<String>> = of.files.iter().map(|f| (f.path.as_str(), reach(&f.path))).collect();
    let mut told: BTreeSet<String> = BTreeSet::new();
    let mut found = Vec::new();
    for (file, reaches) in &reached {
        if !reaches.contains(*file) || told.contains(*file) {
            continue;
        }
        let circle: Vec<&str> =
            reached.keys().copied().filter(|other| reaches.contains(*other) && reached[other].contains(*file)).collect();
        let mut text = String::new();
        for member in &circle {
            told.insert((*member).to_owned());
            for (target, name) in imports.get(member).into_iter().flatten().filter(|(target, _)| circle.contains(target)) {
                text.push_str(&format!("  {member} -> {target} ({name})\n"));
            }
        }
        found.push(text);
    }
    found
}
