//! What the text of a migration says: how it runs, and which tables it keeps others from.

use refinery::Migration;
use std::collections::BTreeSet;

/// The first line of a migration that runs outside a transaction.
const MARK: &str = "-- outside a transaction";

/// Whether a migration runs outside a transaction.
pub fn is_outside_transaction(sql: &str) -> bool {
    sql.starts_with(MARK)
}

/// The statements of a migration outside a transaction, which empty lines divide. Each runs alone, and all again after a failure.
pub fn steps(sql: &str) -> impl Iterator<Item = &str> {
    sql.split("\n\n").filter(|step| !code(step).trim().is_empty())
}

/// A line for people.
pub fn plan(migration: &Migration) -> String {
    let sql = migration.sql().unwrap_or_default();
    let how = if is_outside_transaction(sql) { "outside a transaction, step by step" } else { "in a transaction" };
    let locks: Vec<String> = locks(sql).into_iter().map(|(table, lock)| format!("{table} ({lock})")).collect();
    let locks = if locks.is_empty() { "no table that is there".to_owned() } else { locks.join(", ") };
    format!("{migration}: {how}; locks {locks}")
}

/// The tables that a migration locks, beside those that it makes, and what others can't do with them meanwhile.
fn locks(sql: &str) -> BTreeSet<(String, &'static str)> {
    let sql = code(sql);
    let (mut made, mut locks) = (BTreeSet::new(), BTreeSet::new());
    for statement in sql.split(';') {
        let noise = |word: &&str| ["IF", "NOT", "EXISTS", "ONLY", "UNIQUE"].contains(word);
        let words: Vec<&str> =
            statement.split(|c: char| c.is_whitespace() || "(),".contains(c)).filter(|w| !w.is_empty() && !noise(w)).collect();
        let after = |word: &str| words.iter().skip_while(|w| **w != word).nth(1).copied();
        let lock = match words.as_slice() {
            ["CREATE", "TABLE", table, ..] => {
                made.insert(unqualified(table));
                None
            }
            ["ALTER" | "DROP" | "LOCK" | "TRUNCATE", "TABLE", table, ..] => Some((*table, "no reads, no writes")),
            ["CREATE" | "DROP", "INDEX", "CONCURRENTLY", ..] => None,
            ["DROP", "INDEX", index, ..] => Some((*index, "no reads, no writes of its table")),
            ["CREATE", "INDEX" | "TRIGGER", ..] => after("ON").map(|table| (table, "no writes")),
            ["UPDATE", table, ..] | ["DELETE", "FROM", table, ..] => Some((*table, "no writes of the rows that it changes")),
            _ => None,
        };
        let referenced = words.windows(2).filter(|pair| pair[0] == "REFERENCES").map(|pair| (pair[1], "no writes"));
        locks.extend(lock.into_iter().chain(referenced).map(|(table, lock)| (unqualified(table), lock)));
    }
    locks.retain(|(table, _)| !made.contains(table));
    locks
}

/// A table's name without its schema.
fn unqualified(table: &str) -> String {
    table.strip_prefix("public.").unwrap_or(table).to_owned()
}

/// Without comments.
fn code(sql: &str) -> String {
    sql.lines().map(|line| line.split("--").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(sql: &str) -> String {
        plan(&Migration::unapplied("V2__more", sql).unwrap())
    }

    #[test]
    fn a_plan_names_the_tables_that_a_migration_keeps_others_from() {
        let sql = "-- ALTER TABLE in a comment
            CREATE TABLE notes (id uuid, payment uuid REFERENCES payments (id));
            CREATE UNIQUE INDEX notes_of_payment ON notes (payment);
            ALTER TABLE ONLY merchants ADD COLUMN note text;
            CREATE INDEX transfers_by_sender ON transfers (sender);
            UPDATE xpubs SET xpub = NULL;";
        assert_eq!(
            plan_of(sql),
            "V2__more: in a transaction; locks merchants (no reads, no writes), payments (no writes), transfers (no writes), \
             xpubs (no writes of the rows that it changes)"
        );
        let of_its_own = "CREATE TABLE t (i int); DELETE FROM public.t; LOCK TABLE public.t";
        assert_eq!(plan_of(of_its_own), "V2__more: in a transaction; locks no table that is there");
    }

    #[test]
    fn a_marked_migration_runs_step_by_step_outside_a_transaction() {
        let sql = "-- outside a transaction: others write meanwhile\n\n-- Of an attempt that failed.\nDROP INDEX CONCURRENTLY IF EXISTS i;\n\n\
                   CREATE INDEX CONCURRENTLY i ON t (a);\n";
        assert!(is_outside_transaction(sql) && !is_outside_transaction("CREATE TABLE t (i int);"));
        let steps: Vec<&str> = steps(sql).collect();
        assert_eq!(steps.len(), 2, "{steps:?}");
        assert!(steps[0].contains("DROP") && steps[1].contains("CREATE"), "{steps:?}");
        assert_eq!(plan_of(sql), "V2__more: outside a transaction, step by step; locks no table that is there");
    }
}
