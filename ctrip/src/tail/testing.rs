//! Descriptors for tests, compiled from the text of a schema as those of the registry are.

use prost_reflect::{DescriptorPool, MessageDescriptor};
use topics::Topic;

/// The first message of a schema that imports nothing.
pub fn compile(text: &str) -> MessageDescriptor {
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_proto(protox_parse::parse("schema.proto", text).unwrap()).unwrap();
    pool.get_file_by_name("schema.proto").unwrap().messages().next().unwrap()
}

pub fn descriptor(topic: Topic) -> MessageDescriptor {
    compile(topic.schema())
}
