//! cTrip's own account, as a process was started with it, beside what each database says that it reaches.
//!
//! A database that takes the place of another may be from before the account was noted, so it is noted there as at a start. Where
//! another one is noted, an operator has said so at a process that was started later, or the database is from before the own one took
//! its place: this process can't tell. It gives out no address of its own account any more: money to it would go to a wallet that
//! nobody may have. All else goes on. That it may take the other's place counted at its start, and does not any more.
//!
//! A database that took the place of that one may be from before the other was noted, so what it says ends nothing.

use crate::installation::{installation, note_own_account, own_account};
use base::locked;
use deadpool_postgres::Client;
use merchants::accounts::Account;
use runtime::Failure;
use std::sync::Mutex;

/// The account, and what is wrong with it.
#[derive(Default)]
pub struct OwnAccount(Mutex<State>);

#[derive(Default)]
struct State {
    own: Option<Account>,
    problem: Option<String>,
    /// The problem was seen in the database that is reached, after it had caught up.
    is_of_this_database: bool,
}

/// What a database says of the own account.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// It is the one, or may become it.
    Own,
    Other(String),
    /// As before.
    Unclear,
}

impl State {
    fn judge(&mut self, own: &str, noted: Option<String>, is_known: bool) -> Verdict {
        self.is_of_this_database &= is_known;
        match noted {
            Some(noted) if noted != own => {
                self.is_of_this_database = is_known;
                Verdict::Other(noted)
            }
            _ if self.problem.is_none() || self.is_of_this_database => Verdict::Own,
            _ => Verdict::Unclear,
        }
    }
}

impl OwnAccount {
    /// Notes a registered account in the database, in place of the one that it `replaces`, and from now on in each that takes its
    /// place and has none.
    ///
    /// # Errors
    /// `Halt` when another is noted; when the database fails.
    pub async fn note(&self, db: &mut Client, account: &Account, replaces: Option<&str>) -> Result<(), Failure> {
        note_own_account(&*db, account.fingerprint(), replaces).await?;
        locked(&self.0).own = Some(account.clone());
        Ok(())
    }

    /// Why no address of it is given out.
    pub fn problem(&self) -> Option<String> {
        locked(&self.0).problem.clone()
    }

    /// Holds it against the database. `is_known` is one that it was noted in.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn check(&self, db: &mut Client, is_known: bool) -> Result<(), Failure> {
        let Some(account) = locked(&self.0).own.clone() else { return Ok(()) };
        let (own, noted) = (account.fingerprint(), own_account(&*db).await?);
        let is_noted = noted.is_some();
        let verdict = locked(&self.0).judge(own, noted, is_known);
        let problem = match verdict {
            Verdict::Unclear => return Ok(()),
            Verdict::Other(noted) => Some(format!(
                "the account {noted} has taken the place of {own}, which this process was started with: it gives out no address of it. \
                 Start it again with the CTRIP_XPUB of {noted}, or, if Postgres was restored from before {own} took its place, with \
                 CTRIP_XPUB_REPLACES={noted}"
            )),
            Verdict::Own if is_known && is_noted => None,
            Verdict::Own => {
                let note = async {
                    installation(&*db).await?;
                    account.register_again(db).await?;
                    note_own_account(&*db, own, None).await
                };
                match note.await {
                    Ok(()) => None,
                    Err(Failure::Halt(cause)) => Some(format!("CTRIP_XPUB: {cause:#}")),
                    Err(failure) => return Err(failure),
                }
            }
        };
        account.note_replaced(problem.is_some());
        let state = &mut locked(&self.0);
        if let Some(problem) = problem.as_ref().filter(|problem| state.problem.as_ref() != Some(problem)) {
            tracing::error!("{problem}");
        }
        state.problem = problem;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(account: &str) -> Option<String> {
        Some(account.to_owned())
    }

    #[test]
    fn an_account_that_was_replaced_comes_back_with_no_other_database() {
        let mut state = State::default();
        assert_eq!(state.judge("a", noted("a"), true), Verdict::Own);
        assert_eq!(state.judge("a", noted("b"), true), Verdict::Other("b".to_owned()));
        state.problem = noted("b");
        // A restart of Postgres, or a restore from before the other one was noted, or from before any was.
        assert_eq!(state.judge("a", noted("b"), false), Verdict::Other("b".to_owned()));
        for restored in [noted("a"), None] {
            assert_eq!(state.judge("a", restored.clone(), false), Verdict::Unclear);
            assert_eq!(state.judge("a", restored, true), Verdict::Unclear, "once it has caught up as well");
        }
        // An operator takes it back where it was taken.
        assert_eq!(state.judge("a", noted("b"), true), Verdict::Other("b".to_owned()));
        assert_eq!(state.judge("a", noted("a"), true), Verdict::Own);
    }

    #[test]
    fn an_account_is_noted_in_a_database_from_before_it_was_and_takes_no_others_place_there() {
        let mut state = State::default();
        assert_eq!(state.judge("b", None, false), Verdict::Own);
        assert_eq!(state.judge("b", noted("b"), false), Verdict::Own);
        assert_eq!(
            state.judge("b", noted("a"), false),
            Verdict::Other("a".to_owned()),
            "though it took that one's at its start"
        );
    }
}
