//! The tests of the checkout by their paths, such as `e2e::e2e::payments::a_part`. Files are read as tokens, so that tests within
//! macros are found as well.

use crate::documents::files;
use crate::{read, root};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::fs;

/// Paths of tests that run; ignored ones are left out.
pub struct Tests(Vec<String>);

impl Tests {
    pub fn of_the_checkout() -> Self {
        let mut paths = Vec::new();
        for folder in fs::read_dir(root()).expect("the checkout").flatten().map(|entry| entry.path()) {
            for room in ["src", "tests"].map(|room| folder.join(room)).into_iter().filter(|room| room.is_dir()) {
                files(&room, &mut paths);
            }
        }
        paths.retain(|path| path.ends_with(".rs"));
        let sources: Vec<_> = paths.iter().map(|path| (path.as_str(), read(path))).collect();
        let tests = Self::from(sources.iter().map(|(path, text)| (*path, text.as_str())));
        assert!(tests.0.len() > 600, "the tests have moved: found {}", tests.0.len());
        tests
    }

    /// Of files by their paths in the checkout.
    pub fn from<'a>(sources: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut found = Vec::new();
        for (path, text) in sources {
            let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
            let rooms =
                path.trim_end_matches(".rs").split('/').filter(|room| !["src", "tests", "mod", "lib", "main"].contains(room));
            collect(tokens, &rooms.collect::<Vec<_>>().join("::"), &mut found);
        }
        Self(found)
    }

    /// Why these names do not hold a promise: each has to be that of one test or of a module with tests, whole or from a segment of
    /// its path on.
    pub fn faults(&self, names: &[String]) -> Vec<String> {
        if names.is_empty() {
            return vec!["no test is named that fails where this is not so".to_owned()];
        }
        let fault = |name: &String| {
            let ends =
                |path: &str| path == name || path.strip_suffix(name.as_str()).is_some_and(|before| before.ends_with("::"));
            let of_module = |path: &&String| path.rsplit_once("::").is_some_and(|(module, _)| ends(module));
            match self.0.iter().filter(|path| ends(path)).count() {
                0 if self.0.iter().any(|path| of_module(&path)) => None,
                0 => Some(format!("`{name}` is no test, or an ignored one: name one that runs and fails where this is not so")),
                1 => None,
                several => Some(format!("`{name}` is the name of {several} tests: put its module in front")),
            }
        };
        names.iter().filter_map(fault).collect()
    }
}

fn collect(tokens: TokenStream, module: &str, found: &mut Vec<String>) {
    let (mut tokens, mut is_test, mut is_ignored) = (tokens.into_iter().peekable(), false, false);
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                if let Some(TokenTree::Group(attribute)) = tokens.next_if(|next| matches!(next, TokenTree::Group(_))) {
                    let path: Vec<String> = attribute
                        .stream()
                        .into_iter()
                        .take_while(|token| !matches!(token, TokenTree::Group(_)))
                        .map(|token| token.to_string())
                        .collect();
                    is_test |= path.last().is_some_and(|last| last == "test");
                    is_ignored |= path.first().is_some_and(|first| first == "ignore");
                }
            }
            TokenTree::Ident(word) if word == "fn" || word == "mod" => {
                let Some(TokenTree::Ident(name)) = tokens.next() else { continue };
                // A file's own tests are named by the file.
                let path = if name == "tests" { module.to_owned() } else { format!("{module}::{name}") };
                if word == "mod" {
                    let inner = tokens.next_if(|next| matches!(next, TokenTree::Group(_)));
                    if let Some(TokenTree::Group(inner)) = inner {
                        collect(inner.stream(), &path, found);
                    }
                } else if is_test && !is_ignored {
                    found.push(path);
                }
                (is_test, is_ignored) = (false, false);
            }
            // `proptest! { … }` has tests like a module.
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => collect(group.stream(), module, found),
            _ => {}
        }
    }
}
