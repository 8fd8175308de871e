//! The tables of a page that names tests.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// A row below the head of its table.
pub struct Row {
    pub line: usize,
    /// The heading that it stands below.
    pub section: String,
    pub cells: Vec<Cell>,
}

#[derive(Default)]
pub struct Cell {
    /// Without the marks of Markdown.
    pub text: String,
    /// What has the form of a test's name and is set as code.
    pub names: Vec<String>,
}

pub fn rows(markdown: &str) -> Vec<Row> {
    let (mut rows, mut section, mut row): (Vec<Row>, String, Option<Row>) = (Vec::new(), String::new(), None);
    let mut in_heading = false;
    for (event, place) in Parser::new_ext(markdown, Options::ENABLE_TABLES).into_offset_iter() {
        let line = markdown[..place.start].matches('\n').count() + 1;
        match event {
            Event::Start(Tag::Heading { .. }) => (in_heading, section) = (true, String::new()),
            Event::End(TagEnd::Heading(_)) => in_heading = false,
            Event::Text(piece) if in_heading => section.push_str(&piece),
            Event::Start(Tag::TableRow) => row = Some(Row { line, section: section.clone(), cells: Vec::new() }),
            Event::End(TagEnd::TableRow) => rows.extend(row.take()),
            Event::Start(Tag::TableCell) => row.iter_mut().for_each(|row| row.cells.push(Cell::default())),
            Event::Text(ref piece) | Event::Code(ref piece) => {
                if let Some(cell) = row.as_mut().and_then(|row| row.cells.last_mut()) {
                    cell.text.push_str(piece);
                    let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c);
                    if matches!(event, Event::Code(_)) && piece.chars().all(name) {
                        cell.names.push(piece.to_string());
                    }
                }
            }
            _ => {}
        }
    }
    rows
}
