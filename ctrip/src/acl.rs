//! `ctrip acl print`: what each role may do in Kafka and in Postgres, and nothing else, as a script for an administrator.
//!
//! Kafka's user of a role is `User:ROLE`, its user of Postgres is `ctrip_ROLE`. ingest and detector have no business with Postgres.
//! The user `operator` is for `ctrip up`, `topics apply`, `tail`, `backfill`, `resume`, `chain` and `intents`; in Postgres these are for the
//! owner of the database, who migrates it.

use clap::{Subcommand, ValueEnum};
use runtime::Settings;
use std::fmt::Write as _;
use topics::Topic::{self, Blocks, Cursors, Events, Intents, Logs, Matches, Quarantine, State, Sweeps};

#[derive(Subcommand)]
pub enum AclCommand {
    /// Print the ACLs of Kafka and the grants of Postgres that each role needs, as a shell script
    Print {
        /// One of both
        #[arg(long, value_enum)]
        only: Option<Part>,
    },
}

/// A part of the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    Kafka,
    Sql,
}

/// What a role does in Kafka. A transactional id that ends with a hyphen stands for all that begin so.
struct KafkaRights {
    role: &'static str,
    reads: &'static [Topic],
    writes: &'static [Topic],
    groups: &'static [&'static str],
    transactional_ids: &'static [&'static str],
}

const KAFKA: [KafkaRights; 6] = [
    KafkaRights {
        role: "ingest",
        reads: &[Cursors],
        writes: &[Blocks, Logs, Cursors],
        groups: &[],
        transactional_ids: &["ingest-"],
    },
    KafkaRights {
        role: "detector",
        reads: &[Blocks, Logs, Intents, Matches],
        writes: &[Matches, Cursors, Quarantine],
        groups: &["detector"],
        transactional_ids: &["detector-"],
    },
    KafkaRights {
        role: "confirmer",
        reads: &[Matches, Intents, Events, Sweeps],
        writes: &[Events, State, Intents],
        groups: &["confirmer", "outbox", "settling"],
        transactional_ids: &["outbox"],
    },
    KafkaRights { role: "api", reads: &[Intents, Events, Cursors], writes: &[Intents], groups: &[], transactional_ids: &[] },
    KafkaRights { role: "webhooks", reads: &[Events], writes: &[], groups: &["webhooks"], transactional_ids: &[] },
    KafkaRights { role: "sweeper", reads: &[Blocks, Sweeps], writes: &[Sweeps], groups: &["sweeper"], transactional_ids: &[] },
];

/// Groups that nobody joins: librdkafka asks for the coordinator of the group of each reader.
const READERS: [&str; 4] = ["backlog", "lookup", "table", "tail"];

/// The roles that use Postgres, in the order of the columns of [`TABLES`].
const SQL_ROLES: [&str; 4] = ["api", "confirmer", "webhooks", "sweeper"];

/// A table, and what each of [`SQL_ROLES`] does with its rows: selects, inserts, updates, deletes. A locked row counts as updated. `api`
/// and `confirmer` both restore what a backup lacks. [`UPDATES`] has the updates that are not of whole rows.
const TABLES: [(&str, [&str; 4]); 45] = [
    ("merchants", ["si", "si", "", ""]),
    ("restored_accounts", ["siud", "siu", "", ""]),
    ("api_keys", ["s", "", "", ""]),
    ("xpubs", ["si", "si", "", "s"]),
    ("payments", ["siu", "siu", "", "s"]),
    ("payment_parts", ["s", "siud", "", "s"]),
    ("transfers", ["s", "siu", "", "s"]),
    ("chain_heads", ["s", "siud", "", "s"]),
    ("applied_records", ["", "sid", "", ""]),
    ("stage_offsets", ["s", "siu", "siu", "siu"]),
    ("set_aside", ["siud", "siud", "siud", "siud"]),
    ("outbox", ["siud", "siud", "", ""]),
    ("unacknowledged_intents", ["siud", "siud", "", ""]),
    ("idempotency_keys", ["siud", "siu", "", ""]),
    ("deposit_addresses", ["si", "si", "", "s"]),
    ("payment_events", ["siu", "siu", "", ""]),
    ("installation", ["siu", "siu", "s", "s"]),
    ("known_offsets", ["siud", "siud", "", ""]),
    ("told_events", ["siud", "siud", "", ""]),
    ("orphan_transfers", ["s", "siud", "", ""]),
    ("left_blocks", ["", "siud", "", ""]),
    ("swept", ["", "si", "", ""]),
    ("to_settle", ["", "sid", "", ""]),
    ("settled_up_to", ["", "siud", "", ""]),
    ("settled_sums", ["siu", "siu", "", ""]),
    ("replica_beats", ["siud", "", "", ""]),
    ("webhook_endpoints", ["siud", "", "s", ""]),
    ("webhook_messages", ["siud", "", "siu", ""]),
    ("webhook_backlog", ["s", "", "siud", ""]),
    ("webhook_deliveries", ["siud", "", "siud", ""]),
    ("webhook_attempts", ["siud", "", "siud", ""]),
    ("outgoing_lanes", ["", "", "", "siu"]),
    ("outgoing_chains", ["", "", "", "siud"]),
    ("outgoing_foreign", ["", "", "", "siud"]),
    ("outgoing", ["", "", "", "siu"]),
    ("outgoing_blocks", ["", "", "", "si"]),
    ("outgoing_restored", ["", "", "", "siu"]),
    ("outgoing_compared", ["", "", "", "siu"]),
    ("outgoing_nonces", ["", "", "", "si"]),
    ("outgoing_attempts", ["", "", "", "siu"]),
    ("sweeps", ["", "", "", "siu"]),
    ("sweep_chains", ["", "", "", "siu"]),
    ("sweep_candidates", ["", "", "", "siud"]),
    ("sweep_holds", ["", "", "", "s"]),
    // Triggers write it as its owner, so that nobody covers a trace.
    ("changes", ["", "", "", ""]),
];

/// A table, a role, and the columns alone that it updates: no role may lead money or messages elsewhere.
const UPDATES: [(&str, &str, &str); 3] = [
    ("api_keys", "api", "last_used_at"),
    ("xpubs", "api", "xpub"),
    (
        "webhook_endpoints",
        "webhooks",
        "enabled, disabled_reason, disabled_at, failing_since, last_failed_at, paused_until, resting_until",
    ),
];

/// Functions that act with their owner's rights, and who calls them: they make and drop what roles may not.
const FUNCTIONS: [(&str, &str); 3] = [
    ("make_payment_events_partition(timestamptz)", "ctrip_api"),
    ("drop_payment_events_before(timestamptz)", "ctrip_api"),
    ("make_address_sequence(text)", "ctrip_api, ctrip_confirmer"),
];

/// Prints the script.
pub fn run(settings: &Settings, command: &AclCommand) {
    let AclCommand::Print { only } = command;
    println!("set -eu");
    if *only != Some(Part::Sql) {
        print!("{}", kafka(&settings.topic_prefix));
    }
    if *only != Some(Part::Kafka) {
        print!("{}", sql());
    }
}

fn kafka(prefix: &str) -> String {
    let mut script = String::from(
        "# Kafka. KAFKA_COMMAND_CONFIG is the file with an administrator's login, if one is needed.\n\
         acl() { kafka-acls.sh --bootstrap-server \"$KAFKA_BROKERS\" ${KAFKA_COMMAND_CONFIG:+--command-config \"$KAFKA_COMMAND_CONFIG\"} --add \"$@\"; }\n",
    );
    let mut command = |roles: &[&str], operation: &str, resources: Vec<String>| {
        if !resources.is_empty() {
            let principals: Vec<String> = roles.iter().map(|role| format!("--allow-principal User:{role}")).collect();
            let _ = writeln!(script, "acl {} --operation {operation} {}", principals.join(" "), resources.join(" "));
        }
    };
    let topics = |topics: &[Topic]| topics.iter().map(|topic| format!("--topic {prefix}{topic}")).collect::<Vec<_>>();
    let named = |flag: &str, names: &[&str], is_prefix: bool| {
        let names = names.iter().filter(|name| name.ends_with('-') == is_prefix);
        let mut named: Vec<String> = names.map(|name| format!("{flag} {prefix}{name}")).collect();
        if is_prefix && !named.is_empty() {
            named.push("--resource-pattern-type prefixed".to_owned());
        }
        named
    };
    command(&KAFKA.map(|rights| rights.role), "Describe", named("--group", &READERS, false));
    for rights in KAFKA {
        let KafkaRights { role, reads, writes, groups, transactional_ids } = rights;
        command(&[role], "Read", [topics(reads), named("--group", groups, false)].concat());
        command(&[role], "Write", [topics(writes), named("--transactional-id", transactional_ids, false)].concat());
        command(&[role], "Write", named("--transactional-id", transactional_ids, true));
    }
    let groups: Vec<&str> = KAFKA.iter().flat_map(|rights| rights.groups).copied().chain(READERS).collect();
    let ids: Vec<&str> = KAFKA.iter().flat_map(|rights| rights.transactional_ids).copied().chain(["backfill-"]).collect();
    let literal = [topics(&Topic::ALL), named("--group", &groups, false), named("--transactional-id", &ids, false)];
    command(&["operator"], "All", literal.concat());
    let backfills = format!("--group {prefix}backfill-");
    command(&["operator"], "All", [vec![backfills], named("--transactional-id", &ids, true)].concat());
    script
}

fn sql() -> String {
    let mut sql = String::from(
        "# Postgres, as the owner of the database, after `ctrip migrate`. Then give each role a password: ALTER ROLE ctrip_api PASSWORD '…'.\n\
         psql -v ON_ERROR_STOP=1 -q \"$DATABASE_URL\" <<'SQL'\nBEGIN;\n",
    );
    for role in SQL_ROLES {
        let _ = writeln!(
            sql,
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ctrip_{role}') THEN CREATE ROLE ctrip_{role} LOGIN; END IF; END $$;\n\
             GRANT USAGE ON SCHEMA public TO ctrip_{role};\n\
             REVOKE ALL ON ALL TABLES IN SCHEMA public FROM ctrip_{role};\n\
             GRANT SELECT ON refinery_schema_history TO ctrip_{role};"
        );
    }
    for (table, rights) in TABLES {
        for (role, letters) in SQL_ROLES.iter().zip(rights).filter(|(_, letters)| !letters.is_empty()) {
            let _ = writeln!(sql, "GRANT {} ON {table} TO ctrip_{role};", privileges(letters));
        }
    }
    for (table, role, columns) in UPDATES {
        let _ = writeln!(sql, "GRANT UPDATE ({columns}) ON {table} TO ctrip_{role};");
    }
    // Each xpub has a sequence of its own, which a function of the owner makes, perhaps later.
    sql.push_str(
        "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO ctrip_api, ctrip_confirmer;\n\
         ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO ctrip_api, ctrip_confirmer;\n",
    );
    for (function, roles) in FUNCTIONS {
        let _ = writeln!(
            sql,
            "REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC;\nGRANT EXECUTE ON FUNCTION {function} TO {roles};"
        );
    }
    sql.push_str("COMMIT;\nSQL\n");
    sql
}

fn privileges(letters: &str) -> String {
    let all = [('s', "SELECT"), ('i', "INSERT"), ('u', "UPDATE"), ('d', "DELETE")];
    let names: Vec<&str> = all.iter().filter(|(letter, _)| letters.contains(*letter)).map(|(_, name)| *name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_table_of_the_migrations_is_somebodys_and_no_other_is_named() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations");
        let mut created = BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            // A partition is reached by its table.
            let lines = text.lines().filter(|line| !line.contains(" PARTITION OF "));
            let name = |line: &str| line.strip_prefix("CREATE TABLE ")?.split([' ', '(']).next().map(str::to_owned);
            created.extend(lines.filter_map(name));
        }
        let granted: BTreeSet<String> = TABLES.iter().map(|(table, _)| (*table).to_owned()).collect();
        assert_eq!(granted, created);
    }

    #[test]
    fn a_script_of_which_a_command_fails_fails_there() {
        let script = format!("set -eu\nKAFKA_BROKERS=x\nkafka-acls.sh() {{ return 3; }}\n{}echo after", kafka(""));
        let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
        assert!(output.status.code() == Some(3) && output.stdout.is_empty(), "{output:?}");
    }

    #[test]
    fn names_have_the_prefix_and_ids_with_a_hyphen_stand_for_all_that_begin_so() {
        let script = kafka("lab.");
        let expected = "acl --allow-principal User:detector --operation Read --topic lab.chain.blocks --topic lab.chain.logs --topic \
                        lab.payment.intents --topic lab.chain.matches --group lab.detector\n";
        assert!(script.contains(expected), "{script}");
        let expected = "acl --allow-principal User:detector --operation Write --transactional-id lab.detector- --resource-pattern-type prefixed\n";
        assert!(script.contains(expected), "{script}");
        assert!(
            !sql().contains("ON api_keys TO ctrip_confirmer")
                && sql().contains("GRANT SELECT ON api_keys TO ctrip_api;\n")
                && sql().contains("GRANT UPDATE (last_used_at) ON api_keys TO ctrip_api;\n")
        );
        assert!(!sql().contains("GRANT CREATE"), "whoever creates functions may lead the owner's astray");
    }
}
