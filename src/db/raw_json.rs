//! JSON text on its way into a `jsonb` column, as it is: no second parse, no number rounded on the way.

use std::io::Write;

use diesel::pg::Pg;
use diesel::serialize::{IsNull, Output, Result, ToSql};
use diesel::sql_types::Jsonb;

/// JSON text for a `jsonb` column.
#[derive(Clone, Copy, Debug, diesel::expression::AsExpression)]
#[diesel(sql_type = Jsonb)]
pub struct RawJson<'a>(pub &'a str);

impl ToSql<Jsonb, Pg> for RawJson<'_> {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> Result {
        // The binary form of jsonb: a version byte, then the text. Source: jsonb_recv() in PostgreSQL.
        out.write_all(&[1])?;
        out.write_all(self.0.as_bytes())?;
        Ok(IsNull::No)
    }
}
