//! The record types, generated from `proto/`.

#![allow(missing_docs, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/ctrip.v1.rs"));
