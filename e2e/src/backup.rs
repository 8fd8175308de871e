//! Backups of a lab's database, made and restored with Postgres' own tools.

use crate::lab::Lab;
use crate::process::run;
use crate::stack::connect;
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use std::process::Command;

/// A dump of a lab's database.
pub struct Backup {
    file: PathBuf,
}

impl Backup {
    /// Dumps the database with `pg_dump`, whatever runs on it.
    ///
    /// # Errors
    /// When `pg_dump` fails.
    pub fn take(lab: &Lab) -> Result<Self> {
        let file = lab.dir.join("backup.dump");
        run(Command::new("pg_dump").args(["--format=custom", "--file"]).arg(&file).arg(&lab.env["DATABASE_URL"]))?;
        Ok(Self { file })
    }

    /// Puts the dump in the database's place: restored beside it under another name, then renamed, as an operator does. Connections
    /// to the old one are cut.
    ///
    /// # Errors
    /// When `pg_restore` or Postgres fails.
    pub async fn restore(&self, lab: &Lab) -> Result<()> {
        let (server, name) = lab.env["DATABASE_URL"].rsplit_once('/').context("DATABASE_URL names no database")?;
        let new = format!("{name}_restored");
        let url = lab.stack.create_database(&new).await?;
        run(Command::new("pg_restore").args(["--exit-on-error", "--no-owner", "--dbname", &url]).arg(&self.file))?;
        let admin = connect(&format!("{server}/ctrip")).await?;
        admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await?;
        Ok(admin.batch_execute(&format!("ALTER DATABASE {new} RENAME TO {name}")).await?)
    }
}
