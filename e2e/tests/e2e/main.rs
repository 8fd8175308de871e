//! The end-to-end tests: black-box tests of the built `ctrip`, on a real Kafka, schema registry, Postgres and EVM node.
//!
//! All of them are one binary, which links once and runs them side by side: each has a database, a topic prefix, a node and
//! ports of its own (`e2e::Lab`). A test that kills a shared part starts a stack of its own (`Stack::own`). A test waits for
//! conditions (`e2e::eventually`) and never for a time.
//!
//! `make test` runs all, `make test T=payments::a_part` those whose name contains `T`.

mod acl;
mod addresses;
mod alerts;
mod api;
mod authorisation;
mod books;
mod check;
mod claims;
mod concurrency;
mod conservation;
mod contracts;
mod crash;
mod deliveries;
mod doors;
mod doubts;
mod dust;
mod examples;
mod failover;
mod gateway;
mod geth;
mod groups;
mod hanging;
mod history;
mod holes;
mod ingest;
mod lanes;
mod leaders;
mod lifecycle;
mod listed_later;
mod listing;
mod lists;
mod lost_matches;
mod lost_rows;
mod merchants;
mod migrations;
mod openapi;
mod orphans;
mod other_topics;
mod outage;
mod outgoing;
mod past;
mod payments;
mod reads;
mod real_blocks;
mod relay;
mod reorgs;
mod replica;
mod restore;
mod session;
mod set_aside;
mod settled;
mod stacks;
mod stage_offsets;
mod strangers;
mod sweeper;
mod swept;
mod tail;
mod topics_apply;
mod twins;
mod webhook_floods;
mod webhooks;
mod websockets;
mod witnesses;
