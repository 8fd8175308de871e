//! docs/promises.md, held to its word: each promise stands in its document, each test that it names is there, and each sentence
//! that promises something stands in the list. So does docs/failures.md, whose rows name their tests themselves.

mod documents;
mod list;
mod named_tests;

use documents::{Sentence, documents};
use list::{Row, rows};
use named_tests::Tests;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const LIST: &str = "docs/promises.md";
/// Each row of its tables has a case, what cTrip does, and the tests.
const FAILURES: &str = "docs/failures.md";
/// The section of sentences that have a word of promises in another sense; the last cell is the reason.
const NO_PROMISES: &str = "Not promises";
/// Words that make a sentence a promise.
const WORDS: [&str; 6] = ["always", "never", "every", "exactly", "at most", "at once"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("base is a folder of the workspace").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A document, by its path in the checkout.
struct Document {
    path: String,
    sentences: Vec<Sentence>,
}

/// All that is wrong with a list of promises, a line each.
fn faults(list: &[Row], documents: &[Document], tests: &Tests) -> Vec<String> {
    let mut faults = Vec::new();
    let mut quoted: Vec<(&Document, &str, Vec<Range<usize>>)> = Vec::new();
    for row in list {
        let place = format!("{LIST}:{}", row.line);
        let [promise, places, held_by] = row.cells.as_slice() else {
            faults.push(format!("{place}: expected three cells, got {}", row.cells.len()));
            continue;
        };
        if row.section != NO_PROMISES {
            faults.extend(tests.faults(&held_by.names).into_iter().map(|fault| format!("{place}: {fault}")));
        } else if held_by.text.is_empty() {
            faults.push(format!("{place}: say in the last cell why this is no promise"));
        }
        for name in places.text.split(", ") {
            let Some(document) = documents.iter().find(|d| d.path == name || d.path == format!("docs/{name}")) else {
                faults.push(format!("{place}: {name:?} is no document that makes promises"));
                continue;
            };
            let before = quoted.len();
            for sentence in &document.sentences {
                quoted.extend(find(&promise.text, &sentence.text).map(|found| (document, sentence.text.as_str(), found)));
            }
            if quoted.len() == before {
                faults.push(format!("{place}: {name} has no sentence with {:?}; quote it as it stands there", promise.text));
            }
        }
    }
    for document in documents {
        for Sentence { line, text } in &document.sentences {
            let held = |word: &Range<usize>| {
                quoted.iter().any(|(of, sentence, pieces)| {
                    of.path == document.path
                        && sentence == text
                        && pieces.iter().any(|p| p.start <= word.start && word.end <= p.end)
                })
            };
            for word in words(text).into_iter().filter(|word| !held(word)) {
                faults.push(format!(
                    "{}:{line}: {text:?} promises something by {:?}: quote that in {LIST}, with the test that fails where it is \
                     not so, or below {NO_PROMISES:?}, with the reason",
                    document.path, &text[word]
                ));
            }
        }
    }
    faults
}

/// Where the pieces of a quotation, between which it has `…`, stand in a sentence.
fn find(quotation: &str, sentence: &str) -> Option<Vec<Range<usize>>> {
    let mut from = 0;
    quotation
        .split('…')
        .map(str::trim)
        .filter(|piece| !piece.is_empty())
        .map(|piece| {
            let start = from + sentence[from..].find(piece)?;
            from = start + piece.len();
            Some(start..from)
        })
        .collect()
}

/// Where a sentence has words of promises.
fn words(sentence: &str) -> Vec<Range<usize>> {
    let lower = sentence.to_ascii_lowercase();
    let apart = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
    WORDS
        .iter()
        .flat_map(|word| lower.match_indices(word).map(|(start, _)| start..start + word.len()).collect::<Vec<_>>())
        .filter(|found| apart(lower[..found.start].chars().next_back()) && apart(lower[found.end..].chars().next()))
        .collect()
}

static TESTS: LazyLock<Tests> = LazyLock::new(Tests::of_the_checkout);

#[test]
fn each_promise_is_said_and_held_by_a_test_and_none_is_missing() {
    let faults = faults(&rows(&read(LIST)), &documents(), &TESTS);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn each_failure_is_held_by_a_test() {
    let mut faults = Vec::new();
    for row in rows(&read(FAILURES)) {
        let Some(last) = row.cells.last().filter(|cell| cell.text != "the same") else { continue };
        let named = last.names.as_slice();
        faults.extend(TESTS.faults(named).into_iter().map(|fault| format!("{FAILURES}:{}: {fault}", row.line)));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn a_promise_without_a_row_or_a_test_is_named_with_its_place_and_the_cure() {
    let tests =
        Tests::from([("shop/src/door.rs", "mod tests { #[test] fn it_opens() {} } #[test] #[ignore] fn it_closes() {}")]);
    let document = || Document {
        path: "docs/shop.md".to_owned(),
        sentences: documents::of_markdown(
            "# Shop\n\nThe `door` is *always*\nopen. It was made\nexactly so.\n\n```\nnever\n```\n",
            true,
        ),
    };
    let faults = |list: &str| {
        faults(&rows(&format!("## Doors\n\n| promise | said in | held by |\n|---|---|---|\n{list}")), &[document()], &tests)
    };
    let no_promise =
        "\n## Not promises\n\n| sentence | said in | why |\n|---|---|---|\n| exactly so | shop.md | a way to speak |\n";
    let good = format!("| The door is … open | shop.md | `door::it_opens` |\n{no_promise}");

    assert_eq!(faults(&good.replace(" … ", " always ")), [""; 0]);
    let only_around_the_word = faults(&good);
    assert!(
        matches!(only_around_the_word.as_slice(), [one] if one.starts_with("docs/shop.md:3: \"The door is always open.\" promises"))
    );
    for (promise, expected) in [
        ("| always | shop.md | `door::it_opened` |", "docs/promises.md:5: `door::it_opened` is no test"),
        ("| always | shop.md | `it_closes` |", "docs/promises.md:5: `it_closes` is no test"),
        ("| always | shop.md | by hand |", "docs/promises.md:5: no test is named"),
        ("| always open | yard.md | `it_opens` |", "docs/promises.md:5: \"yard.md\" is no document"),
        ("| never open | shop.md | `it_opens` |", "docs/promises.md:5: shop.md has no sentence with \"never open\""),
    ] {
        let found = faults(&format!("{promise}\n{no_promise}"));
        assert!(found.iter().any(|fault| fault.starts_with(expected)), "{promise}: {found:?}");
    }
    let unsaid = faults(no_promise);
    assert!(matches!(unsaid.as_slice(), [one] if one.contains("always")), "{unsaid:?}");
}
