//! What endpoints say alike. Pure.
//!
//! A chain's `witnesses` says how many providers have to agree before something is believed that no proof comes with. Those
//! that err, lag or do not answer say nothing: one of them stops nobody, as long as enough others agree.

use std::collections::BTreeSet;

/// What was said so far, and by which providers.
#[derive(Clone, Debug)]
pub struct Agreement<T> {
    needed: usize,
    said: Vec<(T, BTreeSet<String>)>,
}

impl<T: Clone + PartialEq> Agreement<T> {
    pub fn new(needed: usize) -> Self {
        Self { needed: needed.max(1), said: Vec::new() }
    }

    /// Hears an endpoint of this provider. Returns what it said if by now enough providers say so.
    pub fn hear(&mut self, provider: &str, word: &T) -> Option<T> {
        if !self.said.iter().any(|(said, _)| said == word) {
            self.said.push((word.clone(), BTreeSet::new()));
        }
        let (said, providers) = self.said.iter_mut().find(|(said, _)| said == word)?;
        providers.insert(provider.to_owned());
        (providers.len() >= self.needed).then(|| said.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_believed_once_enough_providers_say_the_same() {
        let mut said = Agreement::new(2);
        assert_eq!(said.hear("a", &5), None);
        assert_eq!(said.hear("a", &5), None, "a provider is one witness, however many endpoints it has");
        assert_eq!(said.hear("b", &1_000_000), None);
        assert_eq!(said.hear("c", &5), Some(5), "one that says otherwise stops nobody");
        assert_eq!(Agreement::new(0).hear("a", &5), Some(5), "nothing is believed that nobody says");
    }
}
