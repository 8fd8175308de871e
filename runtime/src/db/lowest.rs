//! Where a table has its first rows, if they are written with rising ids and deleted from below.

/// An id below which a table has no rows. What was deleted below is passed over row by row while an older transaction is open, such as
/// that of a dump, since no vacuum removes it.
#[derive(Debug, Default)]
pub struct LowestId {
    id: i64,
    /// Where it moves to, and a transaction: those before it may still write an id that they drew before.
    next: Option<(i64, i64)>,
}

impl LowestId {
    pub const fn at(id: i64) -> Self {
        Self { id, next: None }
    }

    pub const fn id(&self) -> i64 {
        self.id
    }

    pub const fn is_moving(&self) -> bool {
        self.next.is_some()
    }

    /// Lets it move once all transactions before this one have ended, unless it moves already.
    pub fn move_to(&mut self, id: i64, own: i64) {
        self.next.get_or_insert((id, own));
    }

    /// Takes in the lowest id that a look has found, and the oldest transaction that was open then.
    pub fn see(&mut self, lowest: Option<i64>, oldest: i64) {
        if let Some((to, _)) = self.next.take_if(|(_, before)| *before <= oldest) {
            // One that was waited for may have written below.
            self.id = lowest.map_or(to, |lowest| lowest.min(to));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_is_passed_over_whose_transaction_ends_late() {
        // It is to move to 20 once all before transaction 7 have ended.
        let seen = |lowest, oldest| {
            let mut id = LowestId::at(10);
            id.move_to(20, 7);
            id.see(lowest, oldest);
            (id.id(), id.is_moving())
        };
        assert_eq!(seen(Some(31), 6), (10, true), "one is open still");
        assert_eq!(seen(Some(12), 7), (12, false), "it wrote 12");
        assert_eq!(seen(Some(31), 7), (20, false), "none has written anything");
        assert_eq!(seen(None, 8), (20, false));
    }
}
