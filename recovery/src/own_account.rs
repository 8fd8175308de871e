//! cTrip's own account, as a process was started with it, beside what each database says that it reaches.
//!
//! A database that takes the place of another may be from before the account was noted, so it is noted there as at a start. In
//! one that is known another account may be noted since: an operator has said so at a process that was started later. Then no
//! address of the own one is given out any more: money to it would go to a wallet that nobody may have. All else goes on.

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
    own: Option<Own>,
    problem: Option<String>,
}

#[derive(Clone)]
struct Own {
    account: Account,
    /// The fingerprint of the one whose place it may take.
    replaces: Option<String>,
}

impl OwnAccount {
    /// Notes a registered account in the database, and from now on in each that takes its place.
    ///
    /// # Errors
    /// `Halt` when another is noted; when the database fails.
    pub async fn note(&self, db: &mut Client, account: &Account, replaces: Option<&str>) -> Result<(), Failure> {
        note_own_account(&*db, account.fingerprint(), replaces).await?;
        locked(&self.0).own = Some(Own { account: account.clone(), replaces: replaces.map(str::to_owned) });
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
        let Some(Own { account, replaces }) = locked(&self.0).own.clone() else { return Ok(()) };
        let (own, noted) = (account.fingerprint(), own_account(&*db).await?);
        let problem = match noted {
            Some(noted) if is_known => (noted != own).then(|| {
                format!(
                    "the account {noted} has taken the place of {own}, which this process was started with: it gives out no address of it. \
                     Start it again with the CTRIP_XPUB of {noted}"
                )
            }),
            _ => {
                let note = async {
                    installation(&*db).await?;
                    account.register_again(db).await?;
                    note_own_account(&*db, own, replaces.as_deref()).await
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
