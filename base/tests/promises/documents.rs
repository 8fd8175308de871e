//! The documents that make promises to users and operators, sentence by sentence; blocks of code are left out.

use crate::{Document, FAILURES, LIST, read, root};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::fs;
use std::path::Path;

/// A sentence without the marks of Markdown, and the line in which it begins.
pub struct Sentence {
    pub line: usize,
    pub text: String,
}

/// docs/asyncapi.yaml is made from the schemas in topics/proto, docs/files.md from the headers of sources, which promise users nothing.
pub fn documents() -> Vec<Document> {
    let mut paths = ["README.md", "ARCHITECTURE.md", "SECURITY.md"].map(str::to_owned).to_vec();
    for room in ["docs", "topics/proto", "api/src/routes", "api/src/openapi/schemas"] {
        files(&root().join(room), &mut paths);
    }
    paths.retain(|path| ![LIST, "docs/files.md"].contains(&path.as_str()));
    let read_one = |path: String| {
        let text = read(&path);
        let sentences = match path.rsplit_once('.').map(|(_, kind)| kind) {
            Some("md") => of_markdown(&text, path != FAILURES),
            Some("proto") => of_comments(&text, "//"),
            Some("rs") => of_comments(&text, "///").into_iter().chain(of_descriptions(&text)).collect(),
            _ => return None,
        };
        Some(Document { path, sentences })
    };
    let documents: Vec<Document> = paths.into_iter().filter_map(read_one).collect();
    assert!(documents.len() > 30, "the documents have moved: found {}", documents.len());
    documents
}

/// The files of a folder and its folders, by their paths in the checkout.
pub fn files(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry of a folder").path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path.strip_prefix(root()).expect("a path of the checkout").display().to_string());
        }
    }
    found.sort();
}

/// A paragraph, a heading, an item of a list or a cell of a table.
#[derive(Default)]
struct Block {
    text: String,
    /// Where a piece of the text begins, and its line.
    lines: Vec<(usize, usize)>,
}

impl Block {
    fn push(&mut self, piece: &str, line: usize) {
        self.lines.push((self.text.len(), line));
        self.text.push_str(piece);
    }

    /// Leaves the block empty.
    fn split(&mut self, sentences: &mut Vec<Sentence>) {
        let Self { text, lines } = std::mem::take(self);
        let mut start = 0;
        let ends = text.match_indices(['.', '!', '?']).map(|(at, _)| at + 1);
        for end in ends.filter(|end| text[*end..].starts_with(' ') && !text[..*end].ends_with(".g.")).chain([text.len()]) {
            let sentence = text[start..end].trim();
            let begin = end - text[start..end].trim_start().len();
            if let Some((_, line)) = lines.iter().rev().find(|(at, _)| *at <= begin).filter(|_| !sentence.is_empty()) {
                sentences.push(Sentence { line: *line, text: sentence.to_owned() });
            }
            start = end;
        }
    }
}

pub fn of_markdown(text: &str, with_tables: bool) -> Vec<Sentence> {
    let (mut sentences, mut block, mut left_out) = (Vec::new(), Block::default(), false);
    for (event, place) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        let line = text[..place.start].matches('\n').count() + 1;
        match event {
            Event::Start(Tag::CodeBlock(_)) => left_out = true,
            Event::Start(Tag::Table(_)) => left_out = !with_tables,
            Event::End(TagEnd::CodeBlock | TagEnd::Table) => left_out = false,
            Event::Text(piece) | Event::Code(piece) if !left_out => block.push(&piece, line),
            Event::SoftBreak | Event::HardBreak => block.push(" ", line),
            Event::Start(Tag::Emphasis | Tag::Strong | Tag::Link { .. })
            | Event::End(TagEnd::Emphasis | TagEnd::Strong | TagEnd::Link) => {}
            Event::Start(_) | Event::End(_) => block.split(&mut sentences),
            _ => {}
        }
    }
    sentences
}

/// A comment begins behind code, and where the one before ended or stands elsewhere.
fn of_comments(text: &str, mark: &str) -> Vec<Sentence> {
    let (mut sentences, mut block, mut column) = (Vec::new(), Block::default(), 0);
    for (line, source) in text.lines().enumerate() {
        let (code, comment) = source.split_once(mark).unwrap_or((source, ""));
        let before = std::mem::replace(&mut column, code.len());
        if !code.trim().is_empty() || comment.trim().is_empty() || before != column {
            block.split(&mut sentences);
        }
        block.push(&format!("{} ", comment.trim().replace('`', "")), line + 1);
    }
    block.split(&mut sentences);
    sentences
}

/// The texts of operations, parameters and answers, which are attributes.
fn of_descriptions(code: &str) -> Vec<Sentence> {
    let mut sentences = Vec::new();
    for (at, name) in code.match_indices("description = \"") {
        let (start, mut block) = (at + name.len(), Block::default());
        let description = code[start..].split('"').next().unwrap_or_default().replace(['\\', '`'], "");
        let words: Vec<&str> = description.split_whitespace().collect();
        block.push(&words.join(" "), code[..start].matches('\n').count() + 1);
        block.split(&mut sentences);
    }
    sentences
}
