//! Other people's text inside our messages.

/// Names that a node gave, the first five of them: it may send any number, of any length.
pub(crate) fn names(names: &[String]) -> String {
    const MAX_NAMES: usize = 5;
    let first: Vec<String> = names.iter().take(MAX_NAMES).map(|name| one_line(name)).collect();
    let more = names.len().saturating_sub(MAX_NAMES);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", first.join(", "))
}

/// The first 200 characters on one line: a node's error text may be a whole HTML page.
pub(crate) fn one_line(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_number_and_length_make_a_line() {
        assert_eq!(names(&["a".to_owned(), "b".to_owned()]), "a, b");
        let many = vec!["x".repeat(1_000_000); 1_000];
        let line = names(&many);
        assert!(line.chars().count() < 1_100 && line.ends_with(" and 995 more"), "{}", line.len());
    }
}
