//! Compares the schemas with the released ones: consumers compiled from those must be able to read new records. The rules, and
//! the steps of a release, are in `proto/README.md`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use prost_reflect::{Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use protox::file::{File, FileResolver};
use std::collections::BTreeMap;
use std::path::Path;

/// Schemas by file name.
type Sources = BTreeMap<String, String>;

struct InMemory(Sources);

impl FileResolver for InMemory {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let source = self.0.get(name).ok_or_else(|| protox::Error::file_not_found(name))?;
        File::from_source(name, source)
    }
}

fn compile(sources: &Sources) -> DescriptorPool {
    let mut compiler = protox::Compiler::with_file_resolver(InMemory(sources.clone()));
    compiler.open_files(sources.keys()).unwrap();
    compiler.descriptor_pool()
}

fn read(folder: &str) -> Sources {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let schemas = paths.filter(|path| path.extension().is_some_and(|extension| extension == "proto"));
    let named = |path: std::path::PathBuf| {
        (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap())
    };
    schemas.map(named).collect()
}

/// Changes in `new` that break consumers compiled from `old`, or stored records.
fn violations(old: &DescriptorPool, new: &DescriptorPool) -> Vec<String> {
    let mut found = Vec::new();
    for file in old.files() {
        let name = file.name();
        let Some(now) = new.get_file_by_name(name) else {
            found.push(format!("{name}: the file is gone"));
            continue;
        };
        if now.package_name() != file.package_name() {
            found.push(format!("{name}: package {} became {}", file.package_name(), now.package_name()));
            continue;
        }
        let first = |file: &prost_reflect::FileDescriptor| file.messages().next().map(|m| m.full_name().to_owned());
        if first(&file) != first(&now) {
            found.push(format!("{name}: the first message is another; records say that theirs is the first"));
        }
    }
    for message in old.all_messages() {
        match new.get_message_by_name(message.full_name()) {
            Some(now) => compare_messages(&message, &now, &mut found),
            None => found.push(format!("{}: the message is gone", message.full_name())),
        }
    }
    for kind in old.all_enums() {
        match new.get_enum_by_name(kind.full_name()) {
            Some(now) => compare_enums(&kind, &now, &mut found),
            None => found.push(format!("{}: the enum is gone", kind.full_name())),
        }
    }
    found
}

fn compare_messages(old: &MessageDescriptor, new: &MessageDescriptor, found: &mut Vec<String>) {
    let message = old.full_name();
    for field in old.fields() {
        let (name, number) = (field.name(), field.number());
        match new.get_field(number) {
            Some(now) if now.name() != name => {
                found.push(format!("{message}: field {number} was {name} and is {}", now.name()))
            }
            Some(now) if shape(&now) != shape(&field) => {
                found.push(format!("{message}.{name}: was {} and is {}", shape(&field), shape(&now)));
            }
            Some(_) => {}
            None if !new.reserved_ranges().any(|range| range.contains(&number)) => {
                found.push(format!("{message}.{name}: removed, and its number {number} is not reserved"));
            }
            None if !new.reserved_names().any(|reserved| reserved == name) => {
                found.push(format!("{message}.{name}: removed, and its name is not reserved"));
            }
            None => {}
        }
    }
    // A reserved number stays reserved, since stored records may have it.
    for number in old.reserved_ranges().flatten() {
        if !new.reserved_ranges().any(|range| range.contains(&number)) {
            found.push(format!("{message}: number {number} is not reserved any more"));
        }
    }
    for name in old.reserved_names() {
        if !new.reserved_names().any(|reserved| reserved == name) {
            found.push(format!("{message}: name {name} is not reserved any more"));
        }
    }
}

/// What the wire and generated code depend on besides name and number.
fn shape(field: &FieldDescriptor) -> String {
    let cardinality = match field.cardinality() {
        Cardinality::Repeated => "repeated ",
        Cardinality::Required => "required ",
        // Messages always have presence.
        Cardinality::Optional if field.supports_presence() && field.kind().as_message().is_none() => "optional ",
        Cardinality::Optional => "",
    };
    let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
    let oneof = oneof.map(|oneof| format!(" in oneof {}", oneof.name())).unwrap_or_default();
    let kind = match field.kind() {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(kind) => kind.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    };
    format!("{cardinality}{kind}{oneof}")
}

fn compare_enums(old: &EnumDescriptor, new: &EnumDescriptor, found: &mut Vec<String>) {
    let kind = old.full_name();
    for value in old.values() {
        let (name, number) = (value.name(), value.number());
        match new.get_value(number) {
            Some(now) if now.name() != name => found.push(format!("{kind}: value {number} was {name} and is {}", now.name())),
            Some(_) => {}
            None if !new.reserved_ranges().any(|range| range.contains(&number)) => {
                found.push(format!("{kind}.{name}: removed, and its number {number} is not reserved"));
            }
            None if !new.reserved_names().any(|reserved| reserved == name) => {
                found.push(format!("{kind}.{name}: removed, and its name is not reserved"));
            }
            None => {}
        }
    }
}

#[test]
fn the_schemas_break_nobody_who_has_the_released_ones() {
    let (old, new) = (read("released"), read("proto"));
    assert!(old.keys().all(|name| new.contains_key(name)), "a released schema is gone");
    let unreleased: Vec<_> = new.keys().filter(|name| !old.contains_key(*name)).collect();
    assert_eq!(unreleased, ["sweep_event.proto"], "every other topic's schema was released");
    assert_eq!(new.len(), topics::Topic::ALL.len(), "a topic and its schema");
    let found = violations(&compile(&old), &compile(&new));
    assert!(found.is_empty(), "see topics/proto/README.md for what may change:\n{}", found.join("\n"));
}

const RELEASED: &str = r#"
syntax = "proto3";
package ctrip.v1;
message Record {
  reserved 9;
  reserved "gone";
  uint64 chain = 1;
  string name = 2;
  optional uint64 safe = 3;
  repeated Part parts = 4;
  Kind kind = 5;
  message Part { bytes amount = 1; }
  enum Kind { UNKNOWN = 0; ADDED = 1; REMOVED = 2; }
}
message Other {}
"#;

fn after(edits: &[(&str, &str)]) -> Vec<String> {
    let mut text = RELEASED.to_owned();
    for (from, to) in edits {
        assert!(text.contains(from), "{from:?} is not in the schema");
        text = text.replace(from, to);
    }
    let file = |text: &str| Sources::from([("record.proto".to_owned(), text.to_owned())]);
    violations(&compile(&file(RELEASED)), &compile(&file(&text)))
}

#[test]
fn a_change_that_breaks_a_consumer_is_named() {
    let table: [(&[(&str, &str)], &str); 16] = [
        (&[("string name = 2;", "string name = 7;")], "Record.name: removed, and its number 2 is not reserved"),
        (&[("string name = 2;", "")], "Record.name: removed, and its number 2 is not reserved"),
        (&[("string name = 2;", "reserved 2;")], "Record.name: removed, and its name is not reserved"),
        (&[("string name = 2;", "reserved \"name\";")], "Record.name: removed, and its number 2 is not reserved"),
        (&[("string name = 2;", "string title = 2;")], "field 2 was name and is title"),
        (&[("string name = 2;", "bytes name = 2;")], "Record.name: was string and is bytes"),
        (&[("uint64 chain = 1;", "sint64 chain = 1;")], "Record.chain: was uint64 and is sint64"),
        (&[("optional uint64 safe", "uint64 safe")], "Record.safe: was optional uint64 and is uint64"),
        (
            &[("repeated Part parts", "Part parts")],
            "Record.parts: was repeated ctrip.v1.Record.Part and is ctrip.v1.Record.Part",
        ),
        (&[("string name = 2;", "oneof either { string name = 2; }")], "and is optional string in oneof either"),
        (&[("bytes amount = 1;", "string amount = 1;")], "Record.Part.amount: was bytes and is string"),
        (&[("REMOVED = 2;", "")], "Record.Kind.REMOVED: removed, and its number 2 is not reserved"),
        (&[("ADDED = 1;", "PUT = 1;")], "Record.Kind: value 1 was ADDED and is PUT"),
        (&[("reserved 9;", "")], "number 9 is not reserved any more"),
        (&[("message Other {}", "")], "ctrip.v1.Other: the message is gone"),
        (
            &[("message Other {}", ""), ("message Record {", "message Other {}\nmessage Record {")],
            "the first message is another",
        ),
    ];
    for (edits, expected) in table {
        let found = after(edits);
        assert!(found.iter().any(|violation| violation.contains(expected)), "{edits:?}: expected {expected:?}, got {found:?}");
    }
}

#[test]
fn a_change_that_breaks_nobody_passes() {
    let table: [&[(&str, &str)]; 6] = [
        &[],
        &[("string name = 2;", "string name = 2;\n  string more = 6;\n  repeated uint32 counts = 7;")],
        &[("string name = 2;", "reserved 2; reserved \"name\";")],
        &[("REMOVED = 2;", "REMOVED = 2; REPLAYED = 3;")],
        &[("REMOVED = 2;", "reserved 2; reserved \"REMOVED\";")],
        &[("message Other {}", "message Other { string text = 1; message Inner {} }")],
    ];
    for edits in table {
        assert_eq!(after(edits), Vec::<String>::new(), "{edits:?}");
    }
}
