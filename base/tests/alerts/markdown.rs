//! What a page of Markdown has: headings, anchors and links.

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use std::collections::BTreeSet;

fn all_headings(page: &str) -> Vec<(HeadingLevel, String)> {
    let (mut found, mut open) = (Vec::new(), None);
    for event in Parser::new_ext(page, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { level, .. }) => open = Some((level, String::new())),
            Event::End(TagEnd::Heading(_)) => found.extend(open.take()),
            Event::Text(piece) | Event::Code(piece) => {
                if let Some((_, text)) = &mut open {
                    text.push_str(&piece);
                }
            }
            _ => {}
        }
    }
    found
}

/// The headings of a level, 1 for the title.
pub fn headings(page: &str, level: usize) -> Vec<String> {
    all_headings(page).into_iter().filter(|(of, _)| *of as usize == level).map(|(_, text)| text).collect()
}

/// What GitHub calls the headings in links.
pub fn anchors(page: &str) -> BTreeSet<String> {
    let anchor = |text: &str| -> String {
        let kept = text.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
        kept.replace(' ', "-")
    };
    all_headings(page).iter().map(|(_, text)| anchor(text)).collect()
}

pub fn links(page: &str) -> Vec<String> {
    let link = |event| match event {
        Event::Start(Tag::Link { dest_url, .. }) => Some(dest_url.to_string()),
        _ => None,
    };
    Parser::new_ext(page, Options::ENABLE_TABLES).filter_map(link).collect()
}
