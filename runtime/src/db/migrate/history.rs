//! What was applied to a database, and whether this version goes on from there.

use anyhow::{bail, ensure};
use refinery::{Migration, SchemaVersion};
use tokio_postgres::{Client, Error};

/// A row of the history.
pub struct Applied {
    version: SchemaVersion,
    name: String,
    checksum: String,
}

/// The history, oldest first; none of a database that was never migrated.
///
/// # Errors
/// When the database fails.
pub async fn read(client: &Client) -> Result<Vec<Applied>, Error> {
    let exists = client.query_one("SELECT to_regclass('refinery_schema_history') IS NOT NULL", &[]).await?;
    if !exists.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let rows = client.query("SELECT version, name, checksum FROM refinery_schema_history ORDER BY version", &[]).await?;
    Ok(rows.iter().map(|row| Applied { version: row.get(0), name: row.get(1), checksum: row.get(2) }).collect())
}

/// Why nothing leads from this history to ours. One that goes further than ours is fine: a role works beside a newer one.
pub fn contradiction(ours: &[Migration], applied: &[Applied]) -> Option<String> {
    let (done, expected) = applied.iter().find_map(|done| {
        let same = ours.iter().find(|migration| migration.version() == done.version)?;
        (same.name() != done.name || same.checksum().to_string() != done.checksum).then_some((done, same))
    })?;
    let Applied { version, name, .. } = done;
    Some(if expected.name() == *name {
        format!(
            "migration V{version}__{name} was applied to the database with another text than this version has. Run the `ctrip` that was \
             released, and not one with a changed migration"
        )
    } else {
        format!(
            "the database is of a version before 0.1.0: it has migration V{version}__{name}, expected {expected}. Nothing leads from there \
             to this version: give DATABASE_URL an empty database and run `ctrip migrate`. Payments and static addresses come back from \
             the topics then; merchants' settings, API keys and webhooks are to be made again"
        )
    })
}

/// Ours that are not in this history. One that goes further needs nothing: the version before works on the migrated database, and starts.
///
/// # Errors
/// When nothing leads from it to ours, or it goes further and lacks some.
pub fn pending<'a>(ours: &'a [Migration], applied: &[Applied]) -> anyhow::Result<Vec<&'a Migration>> {
    if let Some(contradiction) = contradiction(ours, applied) {
        bail!(contradiction);
    }
    let pending: Vec<_> =
        ours.iter().filter(|migration| applied.iter().all(|done| done.version != migration.version())).collect();
    let last = ours.last().map_or(0, Migration::version);
    if let Some(Applied { version, name, .. }) = applied.last().filter(|done| done.version > last) {
        let newer =
            format!("a newer `ctrip` has migrated the database, to V{version}__{name}; this one has migrations up to V{last}");
        ensure!(pending.is_empty(), "{newer}, of which the database lacks some: run the newer one");
        tracing::warn!("{newer}");
    }
    Ok(pending)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(name: &str) -> Migration {
        Migration::unapplied(name, "SELECT 1").unwrap()
    }

    fn applied(migration: &Migration) -> Applied {
        Applied { version: migration.version(), name: migration.name().to_owned(), checksum: migration.checksum().to_string() }
    }

    #[test]
    fn a_history_that_does_not_lead_to_this_version_is_refused() {
        let ours = [migration("V1__schema"), migration("V2__more")];
        let names = |history: &[Applied]| {
            let pending = pending(&ours, history).map_err(|error| error.to_string())?;
            Ok::<_, String>(pending.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]), Ok(vec!["V1__schema".to_owned(), "V2__more".to_owned()]));
        assert_eq!(names(&[applied(&ours[0])]), Ok(vec!["V2__more".to_owned()]));
        assert_eq!(names(&[applied(&ours[0]), applied(&ours[1])]), Ok(Vec::new()));

        let old = names(&[applied(&migration("V1__payments"))]).unwrap_err();
        assert!(
            ["before 0.1.0", "V1__payments", "V1__schema", "empty database"].iter().all(|part| old.contains(part)),
            "{old}"
        );
        let changed = names(&[Applied { checksum: "7".to_owned(), ..applied(&ours[0]) }]).unwrap_err();
        assert!(changed.contains("another text"), "{changed}");
        let newer = [applied(&ours[0]), applied(&ours[1]), applied(&migration("V3__newest"))];
        assert_eq!(names(&newer), Ok(Vec::new()), "a rolling upgrade, or one that is taken back");
        let lacks = [applied(&ours[0]), applied(&migration("V3__newest"))];
        assert!(names(&lacks).unwrap_err().contains("to V3__newest"));
        assert_eq!(contradiction(&ours, &newer), None, "roles may run beside newer ones");
    }
}
