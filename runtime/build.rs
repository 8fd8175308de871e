//! `embed_migrations!` reads the folder only when this crate is compiled, so a new migration has to trigger that.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
