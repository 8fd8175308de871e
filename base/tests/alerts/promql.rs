//! Which metrics a query of PromQL asks for. No parser: names, strings and brackets are enough to tell.

/// A metric that a query names, with the labels that it asks about.
#[derive(Debug, PartialEq)]
pub struct Selector {
    pub metric: String,
    pub labels: Vec<String>,
}

/// Words between vectors and numbers.
const WORDS: [&str; 6] = ["and", "or", "unless", "offset", "bool", "Inf"];
/// Words before names of labels in parentheses.
const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

const fn is_part_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

fn name(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c| !is_part_of_name(c)).unwrap_or(text.len()))
}

/// The text behind the closing bracket, and what is before it. There are no brackets in brackets.
fn until(text: &str, closing: char) -> (&str, &str) {
    text.split_once(closing).unwrap_or_else(|| panic!("no {closing} in {text}"))
}

/// The rest behind a text in quotes.
fn behind_quotes(text: &str) -> &str {
    let quote = text.chars().next().expect("a quote");
    until(&text[1..], quote).1
}

/// The metrics of a query.
pub fn selectors(query: &str) -> Vec<Selector> {
    let (mut found, mut rest) = (Vec::new(), query);
    while let Some(next) = rest.chars().next() {
        match next {
            '"' | '\'' => rest = behind_quotes(rest),
            '[' => rest = until(rest, ']').1,
            c if is_part_of_name(c) => {
                let (word, behind) = name(rest);
                let behind = behind.trim_start();
                rest = behind;
                let is_number = c.is_ascii_digit();
                let (follows, _) = name(behind);
                let is_function = behind.starts_with('(') || ["by", "without"].contains(&follows);
                if GROUPINGS.contains(&word) {
                    rest = until(behind, ')').1;
                } else if !is_number && !is_function && !WORDS.contains(&word) {
                    let mut labels = Vec::new();
                    if let Some(matchers) = behind.strip_prefix('{') {
                        (labels, rest) = label_names(matchers);
                    }
                    found.push(Selector { metric: word.to_owned(), labels });
                }
            }
            other => rest = &rest[other.len_utf8()..],
        }
    }
    found
}

/// The names of labels up to the closing brace, and what is behind it.
fn label_names(matchers: &str) -> (Vec<String>, &str) {
    let (mut labels, mut rest) = (Vec::new(), matchers);
    loop {
        rest = rest.trim_start_matches([',', ' ', '\n']);
        if let Some(behind) = rest.strip_prefix('}') {
            return (labels, behind);
        }
        let (label, behind) = name(rest);
        assert!(!label.is_empty(), "expected a label: {rest}");
        labels.push(label.to_owned());
        rest = behind_quotes(behind.trim_start_matches(['=', '~', '!', ' ']));
    }
}

/// The value of a label of a series, which is written as `{name="value"}`.
pub fn label(series: &str, name: &str) -> Option<String> {
    let (_, behind) = series.split_once(&format!("{name}=\""))?;
    behind.split('"').next().map(str::to_owned)
}

#[test]
fn the_metrics_of_a_query_are_found_among_its_words() {
    let metrics = |query| selectors(query).into_iter().map(|s| s.metric).collect::<Vec<_>>();
    let query = "histogram_quantile(0.99, sum by (le, stage) (rate(a_bucket{job=\"ctrip\", x!~\"b(c)|up\"}[5m]))) > 1e3
        and on (chain) (b unless c offset 1h) * 0 + Inf or time() - max(d) without (e) < 5m";
    assert_eq!(metrics(query), ["a_bucket", "b", "c", "d"]);
    assert_eq!(selectors("a{b=\"}\", c=~'d'}"), [Selector { metric: "a".into(), labels: vec!["b".into(), "c".into()] }]);
}
