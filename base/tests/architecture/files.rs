//! `docs/files.md` lists every source with the first paragraph of its header and the constants that it sets. This test fails
//! when it is out of date, and for a file without a header; `CTRIP_WRITE_FILES=1 cargo test -p base --test architecture` writes it.

use crate::sources::root;
use quote::ToTokens as _;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use syn::{Attribute, Expr, ImplItem, Item, Lit, Meta};

const INTRODUCTION: &str = "# Files

Every source, with what it is for, and the bounds, times and names that it sets (those of tests are left out).
[ARCHITECTURE.md](../ARCHITECTURE.md) says how the files belong together. Made from the sources:
`CTRIP_WRITE_FILES=1 cargo test -p base --test architecture`.
";

/// All files below a folder.
fn below(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let is_cache = path.file_name().is_some_and(|name| name == "target" || name.to_string_lossy().starts_with('.'));
        match path.is_dir() {
            _ if is_cache => {}
            true => below(&path, found),
            false => found.push(path),
        }
    }
}

/// What a source says of itself.
#[derive(Default)]
struct Told {
    header: String,
    bounds: Vec<Bound>,
}

/// A constant that is a number, a time or a short text.
struct Bound {
    name: String,
    value: String,
    meaning: String,
}

/// The first paragraph, on one line.
fn paragraph<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.map(str::trim).take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

fn sentence(text: &str) -> String {
    let end = text
        .match_indices(". ")
        .find(|(at, _)| text[at + 2..].starts_with(char::is_uppercase))
        .map_or(text.len(), |(at, _)| at + 1);
    text[..end].to_owned()
}

fn doc(attributes: &[Attribute]) -> String {
    let lines: Vec<String> = attributes
        .iter()
        .filter_map(|attribute| match &attribute.meta {
            Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
                Expr::Lit(literal) => match &literal.lit {
                    Lit::Str(text) => Some(text.value()),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        })
        .collect();
    paragraph(lines.iter().map(String::as_str))
}

impl Bound {
    fn read(name: &syn::Ident, kind: &syn::Type, value: &Expr, attributes: &[Attribute]) -> Option<Self> {
        const KINDS: [&str; 13] =
            ["u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "f64", "Duration", "str"];
        let kind = kind.to_token_stream().to_string();
        let value = value.to_token_stream().to_string().replace(' ', "").replace("Duration::", "");
        let is_bound = KINDS.iter().any(|known| kind.ends_with(known)) && value.len() < 60;
        is_bound.then(|| Self { name: name.to_string(), value, meaning: sentence(&doc(attributes)) })
    }
}

fn bounds(items: &[Item]) -> Vec<Bound> {
    let mut found = Vec::new();
    for item in items {
        match item {
            Item::Const(item) => found.extend(Bound::read(&item.ident, &item.ty, &item.expr, &item.attrs)),
            Item::Impl(block) => found.extend(block.items.iter().filter_map(|item| match item {
                ImplItem::Const(item) => Bound::read(&item.ident, &item.ty, &item.expr, &item.attrs),
                _ => None,
            })),
            _ => {}
        }
    }
    found
}

fn told_by_rust(path: &Path, text: &str) -> Told {
    let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Told { header: doc(&file.attrs), bounds: bounds(&file.items) }
}

/// The comment at the top, below a `#!`.
fn told_by_comment(text: &str, mark: &str) -> Told {
    let lines = text.lines().skip_while(|line| line.starts_with("#!") || line.starts_with("syntax") || line.is_empty());
    let comment: Vec<&str> = lines.map_while(|line| line.strip_prefix(mark)).collect();
    Told { header: paragraph(comment.into_iter()), bounds: Vec::new() }
}

fn told(path: &Path) -> Option<Told> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let is_script = || fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"#!"));
    let mark = match extension {
        Some("rs") => "",
        Some("proto") => "//",
        Some("sql") => "--",
        Some("sh") => "#",
        None if is_script() => "#",
        _ => return None,
    };
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(if mark.is_empty() { told_by_rust(path, &text) } else { told_by_comment(&text, mark) })
}

/// The sources of each room: a folder of the checkout.
fn rooms() -> BTreeMap<String, BTreeMap<String, Told>> {
    let mut rooms = BTreeMap::new();
    for folder in fs::read_dir(root()).expect("the checkout").flatten().map(|entry| entry.path()) {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !folder.is_dir() || name.starts_with('.') || ["target", "docs", "deploy"].contains(&name.as_str()) {
            continue;
        }
        let mut paths = Vec::new();
        below(&folder, &mut paths);
        let room: BTreeMap<String, Told> = paths
            .iter()
            .filter_map(|path| Some((path.strip_prefix(&folder).ok()?.display().to_string(), told(path)?)))
            .collect();
        if !room.is_empty() {
            rooms.insert(name, room);
        }
    }
    rooms
}

#[test]
fn the_list_of_files_is_up_to_date() {
    let mut page = INTRODUCTION.to_owned();
    let mut nameless = Vec::new();
    for (room, files) in rooms() {
        write!(page, "\n## {room}\n\n").expect("a string takes all");
        for (path, Told { header, bounds }) in files {
            // Tests of the file beside them.
            if path.ends_with("_tests.rs") || path.ends_with("/tests.rs") {
                continue;
            }
            if header.is_empty() {
                nameless.push(format!("{room}/{path}"));
            }
            writeln!(page, "- `{path}` {header}").expect("a string takes all");
            let is_test = path.contains("tests/") || ["e2e", "fuzz", "testdata"].contains(&room.as_str());
            for Bound { name, value, meaning } in bounds.into_iter().filter(|_| !is_test) {
                let line = format!("  - `{name} = {value}` {meaning}");
                writeln!(page, "{}", line.trim_end()).expect("a string takes all");
            }
        }
    }
    assert!(nameless.is_empty(), "the first lines of a source say what it is for; these say nothing:\n{}", nameless.join("\n"));
    let path = root().join("docs/files.md");
    if std::env::var_os("CTRIP_WRITE_FILES").is_some() {
        fs::write(&path, &page).expect("docs/files.md");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(kept.lines()).position(|(new, old)| new != old);
    assert!(
        page == kept,
        "docs/files.md is out of date, first in line {}; CTRIP_WRITE_FILES=1 cargo test -p base --test architecture writes it",
        differs.map_or_else(|| page.lines().count().min(kept.lines().count()), |line| line + 1)
    );
}
