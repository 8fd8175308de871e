//! `embed_migrations!` looks at the folder when it is compiled and at no other time.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
