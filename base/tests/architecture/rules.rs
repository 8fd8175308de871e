//! The rules. A room is a path in the checkout; all below it belongs to it.

/// A name and rooms.
pub struct Rule {
    /// A crate, a module or an item, as a path.
    pub name: &'static str,
    /// Rooms, as the beginning of a file's path.
    pub rooms: &'static [&'static str],
    /// The reason, for whoever breaks the rule.
    pub why: &'static str,
}

/// Files that hold no clock, no IO and no await, and the words that would bring one in.
pub struct Pure {
    /// The files.
    pub files: &'static [&'static str],
    /// The words.
    pub words: &'static [&'static str],
}

const fn rule(name: &'static str, rooms: &'static [&'static str], why: &'static str) -> Rule {
    Rule { name, rooms, why }
}

/// Names that only these rooms may use.
pub const KEPT_TO: &[Rule] = &[
    rule("rdkafka", &["runtime/src/kafka/", "examples/", "e2e/"], "since its calls block and its defaults lose data"),
    rule(
        "runtime::kafka",
        &["recovery/", "confirmer/", "detector/", "ingest/", "webhooks/", "sweeper/", "api/", "ctrip/", "e2e/"],
        "since only roles, and what they share, have Kafka loops",
    ),
    rule(
        "schema_registry_converter",
        &["runtime/src/registry.rs", "examples/"],
        "since stages encode and decode without a registry",
    ),
    rule("axum", &["api/", "e2e/"], "since HTTP comes in at one place"),
    rule("hyper", &["runtime/src/http/", "runtime/src/exporter.rs"], "since strangers meet one server"),
    rule("utoipa", &["api/"], "since the API's document is made from the API"),
    rule(
        "clap",
        &["ctrip/", "merchants/src/commands.rs", "runtime/src/settings/", "e2e/src/bin/"],
        "since commands are read at the edge",
    ),
    rule("refinery", &["runtime/"], "since migrations run in one place"),
    rule("bip32", &["wallet/"], "since keys are derived in one place"),
    rule("bip39", &["wallet/"], "since keys are derived in one place"),
    rule(
        "wallet::Mnemonic",
        &["wallet/", "sweeper/src/keys/", "ctrip/src/wallet.rs", "e2e/"],
        "since the server holds an xpub and no key",
    ),
    rule("wallet::AccountKey", &["wallet/", "sweeper/src/keys/"], "since the sweeper alone holds keys"),
    rule("k256", &["wallet/", "sweeper/src/keys/"], "since keys are derived in one place, and the sweeper alone signs"),
    rule(
        "alloy::consensus",
        &["chain/", "sweeper/src/keys/", "sweeper/src/engine/", "e2e/"],
        "since what a node answers is read in one place, and what is sent to one is made in one",
    ),
    rule("metrics_exporter_prometheus", &["runtime/"], "since a process has one exporter"),
    rule("confirmer", &["ctrip/", "e2e/"], "since payments are what others need of it"),
    rule("api", &["ctrip/", "e2e/", "fuzz/"], "since nothing stands on the API"),
];

/// Where `chain` proves what a node answered.
const CHAIN_GROUND: [&str; 4] = ["chain/src/block/", "chain/src/proof/", "chain/src/trace/", "chain/src/credit.rs"];
/// Rooms of the API that know requests and no payments.
const API_BELOW_ROUTES: &[&str] = &["api/src/http/", "api/src/auth/", "api/src/chains/", "api/src/openapi/"];

/// Names that these rooms may not use.
pub const KEPT_OUT: &[Rule] = &[
    rule("runtime", &["base/", "topics/", "chain/", "wallet/"], "since it brings librdkafka and Postgres"),
    rule(
        "tokio_postgres",
        &["api/src/routes/", "confirmer/", "detector/", "ingest/", "chain/", "topics/", "wallet/"],
        "since SQL stands where its tables are owned",
    ),
    rule(
        "deadpool_postgres",
        &["api/src/routes/", "detector/", "ingest/", "chain/", "topics/", "wallet/"],
        "since SQL stands where its tables are owned",
    ),
    rule("payments::lifecycle", API_BELOW_ROUTES, "since HTTP knows nothing about a payment's life"),
    rule("payments::history", API_BELOW_ROUTES, "since HTTP knows nothing about a payment's life"),
    rule("crate::routes", API_BELOW_ROUTES, "since routes stand on top of the other rooms"),
    rule("crate::routes", &["api/src/create/"], "since routes stand on top of the other rooms"),
    rule("crate::create", &["api/src/http/", "api/src/chains/"], "since creating payments stands on both"),
    rule("crate::app", &["api/src/http/", "api/src/chains/", "api/src/create/"], "since the shared state holds what they make"),
    rule("axum", &["api/src/chains/"], "since chains know no HTTP but the problems that they refuse with"),
    rule("runtime::Kafka", &["payments/", "merchants/"], "since they are used by roles and are none"),
    rule(
        "recovery",
        &["payments/", "merchants/", "detector/", "ingest/", "webhooks/"],
        "since it is for roles that write payments",
    ),
    rule(
        "payments",
        &["merchants/", "detector/", "ingest/", "chain/"],
        "since payments come from the API and the confirmer alone",
    ),
    rule(
        "merchants",
        &["payments/", "confirmer/"],
        "since a payment knows its merchant by id, and its terms when it is created",
    ),
    rule("reqwest", &["payments/", "merchants/", "detector/", "topics/", "wallet/", "base/"], "since they ask nobody"),
    rule("tokio", &["topics/", "wallet/", "base/"], "since they do no IO"),
    // The floors of `chain`.
    rule("tokio", &CHAIN_GROUND, "since proofs know no network"),
    rule("reqwest", &CHAIN_GROUND, "since proofs know no network"),
    rule("crate::config", &CHAIN_GROUND, "since a proof depends on its arguments alone"),
    rule("crate::rpc", &CHAIN_GROUND, "since proofs know no network"),
    rule("crate::fetch", &CHAIN_GROUND, "since proofs know no network"),
    rule("crate::rpc", &["chain/src/config/"], "since the file is read without a node"),
    rule("crate::fetch", &["chain/src/config/", "chain/src/rpc/"], "since it stands on them"),
    rule("crate::heads", &["chain/src/config/", "chain/src/rpc/", "chain/src/fetch/"], "since it stands on them"),
    rule(
        "runtime",
        &[
            "ingest/src/follow.rs",
            "ingest/src/prefetch.rs",
            "ingest/src/reorg.rs",
            "ingest/src/window.rs",
            "ingest/src/cursor.rs",
        ],
        "since a chain is followed in the same way without Kafka",
    ),
    rule("std::fs", &["topics/", "wallet/", "base/"], "since they do no IO"),
];

/// The cores.
pub const PURE: Pure = Pure {
    files: &[
        "ingest/src/reorg.rs",
        "detector/src/matching.rs",
        "detector/src/coin.rs",
        "detector/src/parts.rs",
        "payments/src/lifecycle.rs",
        "payments/src/payment.rs",
        "payments/src/policy.rs",
        "payments/src/status.rs",
        "payments/src/total.rs",
        "payments/src/transfer.rs",
        "payments/src/deposit.rs",
        "payments/src/events.rs",
        "payments/src/intents.rs",
        "confirmer/src/arrivals.rs",
        "wallet/src/xpub.rs",
        "sweeper/src/engine/agreement.rs",
        "sweeper/src/engine/answers.rs",
        "sweeper/src/engine/content.rs",
        "sweeper/src/engine/fees.rs",
        "sweeper/src/engine/lane.rs",
        "sweeper/src/engine/outgoing.rs",
        "sweeper/src/engine/step.rs",
        "sweeper/src/plan/rules.rs",
    ],
    words: &[
        "async",
        "await",
        "tokio",
        "SystemTime",
        "Instant",
        "now",
        "fs",
        "net",
        "thread",
        "rand",
        "tokio_postgres",
        "rdkafka",
    ],
};
