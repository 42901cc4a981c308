//! `DATABASE_SCHEMA`: the name of the PostgreSQL schema that holds subledger's tables, and quoting for SQL text.

use std::fmt::{self, Display};

use thiserror::Error;

/// The schema that is used if none is configured.
const DEFAULT: &str = "public";

/// The longest name that PostgreSQL does not truncate (`NAMEDATALEN` less one).
const MAX_BYTES: usize = 63;

/// Why a name cannot be the name of subledger's schema.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SchemaNameError {
    /// PostgreSQL has no empty names.
    #[error("the name is empty")]
    Empty,
    /// PostgreSQL would truncate it, and the tables would stand in another schema than the configured one.
    #[error("the name has more than 63 bytes")]
    TooLong,
    /// PostgreSQL keeps these names for itself.
    #[error("names that begin with pg_ are PostgreSQL's own")]
    Reserved,
    /// A search path replaces `$user` by the name of the role, also in quotes.
    #[error("a search path cannot name the schema $user: it stands for the name of the role")]
    RoleName,
    /// No text in PostgreSQL holds this character.
    #[error("the name holds a NUL character")]
    Nul,
}

/// The name of a PostgreSQL schema, as it is stored (not quoted).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaName(String);

impl SchemaName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`SchemaNameError`] if PostgreSQL would refuse or change the name.
    pub fn new(name: &str) -> Result<Self, SchemaNameError> {
        match name {
            "" => Err(SchemaNameError::Empty),
            "$user" => Err(SchemaNameError::RoleName),
            _ if name.len() > MAX_BYTES => Err(SchemaNameError::TooLong),
            _ if name.starts_with("pg_") => Err(SchemaNameError::Reserved),
            _ if name.contains('\0') => Err(SchemaNameError::Nul),
            _ => Ok(Self(name.to_owned())),
        }
    }

    /// The name, not quoted.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `"schema"."name"`, for SQL text.
    #[must_use]
    pub fn qualify(&self, name: &str) -> String {
        format!("{}.{}", identifier(&self.0), identifier(name))
    }
}

impl Default for SchemaName {
    fn default() -> Self {
        Self(DEFAULT.to_owned())
    }
}

/// Quoted, as it stands in SQL text and in messages.
impl Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&identifier(&self.0))
    }
}

/// A quoted identifier for SQL text.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A quoted string for SQL text. It reads the same whether or not `standard_conforming_strings` is on.
#[must_use]
pub fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_postgresql_takes_are_taken_and_quoted() {
        for name in ["public", "Billing", "a b", "a\"b'c\\d", "PG_x", "größe", "select", &"x".repeat(63)] {
            assert_eq!(SchemaName::new(name).unwrap().as_str(), name);
        }
        assert_eq!(SchemaName::new("a\"b").unwrap().qualify("t"), r#""a""b"."t""#);
        assert_eq!(literal(r"it's \ here"), r"E'it\'s \\ here'");
    }

    #[test]
    fn names_that_postgresql_refuses_or_changes_are_refused() {
        for (name, error) in [
            ("", SchemaNameError::Empty),
            ("pg_billing", SchemaNameError::Reserved),
            ("$user", SchemaNameError::RoleName),
            ("a\0b", SchemaNameError::Nul),
            (&*"x".repeat(64), SchemaNameError::TooLong),
            (&*"ö".repeat(32), SchemaNameError::TooLong),
        ] {
            assert_eq!(SchemaName::new(name), Err(error), "{name:?}");
        }
    }
}
