//! Amounts of rows: `numeric(78,0)`, selected as text, since no other type of Postgres' protocol holds 256 bits.

use runtime::Failure;
use tokio_postgres::Row;
use topics::Amount;

pub(super) fn read_amount(row: &Row, column: usize) -> Result<Amount, Failure> {
    row.get::<_, &str>(column).parse().map_err(Failure::halt)
}
