//! A page of rows, some of which may hold nothing that can be read.

use runtime::Failure;
use uuid::Uuid;

/// A page of rows. One that can't be read keeps no other from its turn.
#[derive(Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Those that hold nothing valid, and why.
    pub unreadable: Vec<(Uuid, String)>,
    /// The id of the last row, after which the next page begins, where there are pages; `None` after the last one.
    pub last: Option<Uuid>,
}

impl<T> Page<T> {
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.unreadable.is_empty()
    }

    pub(super) fn of(rows: impl Iterator<Item = (Uuid, Result<T, Failure>)>) -> Self {
        let mut page = Self { items: Vec::new(), unreadable: Vec::new(), last: None };
        for (id, row) in rows {
            page.last = Some(id);
            match row {
                Ok(item) => page.items.push(item),
                Err(cause) => page.unreadable.push((id, cause.to_string())),
            }
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_row_that_cant_be_read_ends_no_page() {
        let [first, second, third] = [3, 2, 1].map(Uuid::from_u128);
        let bad = || Err(Failure::Halt(anyhow!("address: 3 bytes")));
        let page = Page::of([(first, Ok(1)), (second, bad()), (third, bad())].into_iter());
        assert_eq!((page.items, page.last), (vec![1], Some(third)), "the next page begins after it");
        assert_eq!(page.unreadable.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [second, third]);
        assert_eq!(Page::<u8>::of(std::iter::empty()).last, None);
    }
}
