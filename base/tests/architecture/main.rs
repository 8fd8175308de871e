//! The rules of ARCHITECTURE.md about who may name what, checked on the sources: no import circle within a crate, and no name
//! where it does not belong. It reads the files as text, so it needs nothing but the checkout.

mod files;
mod rules;
mod sources;

use rules::{KEPT_OUT, KEPT_TO, PURE};
use sources::{Crate, circles, crates};
use std::collections::BTreeSet;

/// A name covers itself and all below it: `runtime::kafka` covers `runtime::kafka::Consumer`.
fn covers(name: &str, path: &str) -> bool {
    path == name || path.strip_prefix(name).is_some_and(|rest| rest.starts_with("::"))
}

fn within(file: &str, rooms: &[&str]) -> bool {
    rooms.iter().any(|room| file.starts_with(room))
}

/// Calls `found` with each file and each path that it names.
fn each_name(crates: &[Crate], mut found: impl FnMut(&str, &str)) {
    for file in crates.iter().flat_map(|c| &c.files) {
        for path in &file.names {
            found(&file.path, path);
        }
    }
}

#[test]
fn no_file_imports_itself_by_way_of_others() {
    let found: Vec<String> = crates().iter().flat_map(circles).collect();
    assert!(found.is_empty(), "import circles; move what both need into a file below both:\n{}", found.join("\n"));
}

#[test]
fn a_name_is_used_only_where_its_rule_allows() {
    let crates = crates();
    let mut broken = BTreeSet::new();
    each_name(crates, |file, path| {
        for rule in KEPT_TO.iter().filter(|rule| covers(rule.name, path) && !within(file, rule.rooms)) {
            broken.insert(format!("{file} names {path}: {} is for {:?} alone, {}", rule.name, rule.rooms, rule.why));
        }
        for rule in KEPT_OUT.iter().filter(|rule| within(file, rule.rooms) && covers(rule.name, path)) {
            broken.insert(format!("{file} names {path}: {} is kept out of {:?}, {}", rule.name, rule.rooms, rule.why));
        }
    });
    assert!(broken.is_empty(), "{}", broken.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn the_cores_have_no_clock_no_io_and_no_await() {
    let crates = crates();
    let files: Vec<_> = crates.iter().flat_map(|c| &c.files).filter(|file| PURE.files.contains(&file.path.as_str())).collect();
    assert_eq!(files.len(), PURE.files.len(), "a pure core has moved; rules.rs says where each is");
    for file in files {
        for word in &file.words {
            assert!(!PURE.words.contains(&word.as_str()), "{} is a pure core and says {word:?}", file.path);
        }
    }
}

/// A rule about a room or a name that is gone would hold for ever.
#[test]
fn every_rule_is_about_something_that_is_there() {
    let crates = crates();
    let files: Vec<&str> = crates.iter().flat_map(|c| &c.files).map(|file| file.path.as_str()).collect();
    for room in KEPT_TO.iter().chain(KEPT_OUT).flat_map(|rule| rule.rooms) {
        assert!(files.iter().any(|file| file.starts_with(room)), "rules.rs names {room}, and no source is there");
    }
    let mut named = BTreeSet::new();
    each_name(crates, |_, path| {
        named.insert(path.to_owned());
    });
    for rule in KEPT_TO {
        assert!(named.iter().any(|path| covers(rule.name, path)), "rules.rs names {}, and no source does", rule.name);
    }
}
