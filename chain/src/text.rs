//! Other people's text inside our messages.

/// The first 200 characters on one line: a node's error text may be a whole HTML page.
pub(crate) fn one_line(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
