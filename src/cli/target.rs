//! Where the commands that talk to a running server find it, and with which secret they sign.

use std::path::Path;

use anyhow::{Context, Result};
use reqwest::Url;

use crate::config::{ConfigError, Options};
use crate::db::{Conn, connect, installation};
use crate::dev_postgres::RunningPostgres;
use crate::dev_postgres::secrets::Home;
use crate::http::WEBHOOK_PATH;
use crate::secret::Secret;

/// The webhook of a running server.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Target {
    /// The webhook's URL [default: the webhook at BIND_ADDR]
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
}

impl Target {
    /// The webhook's URL.
    pub(crate) fn webhook(&self, options: &Options) -> Result<Url> {
        match &self.url {
            Some(url) => Ok(url.clone()),
            None => Ok(format!("http://{}{WEBHOOK_PATH}", options.bind_addr()?).parse()?),
        }
    }

    /// The URL that was given, if one was.
    pub(crate) fn given(&self) -> Option<&Url> {
        self.url.as_ref()
    }

    /// The server's own address, for its other routes.
    pub(crate) fn server(&self, options: &Options) -> Result<Url> {
        Ok(self.webhook(options)?.join("/")?)
    }
}

/// The first configured webhook secret, else the one that `serve` made up in this folder.
pub(crate) fn webhook_secret(options: &Options) -> Result<Secret> {
    match options.webhook_secrets()?.into_iter().next() {
        Some(secret) => Ok(secret),
        None => Home::at(Path::new("."))
            .webhook_secret()
            .context("STRIPE_WEBHOOK_SECRET: it is needed to sign, since no server has made one up in this folder"),
    }
}

/// The configured admin token, else the one that `serve` made up in this folder.
pub(crate) fn admin_token(options: &Options) -> Result<Secret> {
    match options.admin_token()? {
        Some(token) => Ok(token),
        None => Home::at(Path::new("."))
            .admin_token()
            .context("ADMIN_TOKEN: it is needed for this, since no server has made one up in this folder"),
    }
}

/// The admin token as a command for the shell names it, without showing it.
pub(crate) fn admin_token_in_shell(options: &Options) -> Result<String> {
    let home = Home::at(Path::new("."));
    let is_kept = options.admin_token()?.is_none() && home.admin_token().is_ok();
    Ok(if is_kept { format!("$(cat {})", home.admin_token_path().display()) } else { "$ADMIN_TOKEN".to_owned() })
}

/// A running server's database.
#[derive(Debug)]
pub(crate) struct Database {
    target: connect::Target,
    /// Keeps the way to the private one open.
    _private: Option<RunningPostgres>,
}

impl Database {
    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Result<Conn> {
        installation::check(&self.target).await?;
        Ok(self.target.connect().await?)
    }

    /// Opens a connection on which nothing can be written.
    pub(crate) async fn connect_read_only(&self) -> Result<Conn> {
        Ok(self.target.connect_read_only().await?)
    }
}

/// The configured database, else the private one that a server in this folder runs.
pub(crate) fn database(options: &Options) -> Result<Database> {
    if let Some(target) = options.database()? {
        return Ok(Database { target, _private: None });
    }
    let home = Home::at(Path::new("."));
    let private = RunningPostgres::find(home.path())?.ok_or_else(|| {
        ConfigError::new("DATABASE_URL", "it is needed for this, since no server keeps a database in this folder")
    })?;
    let target = connect::Target::parse(&private.url()?)?.in_schema(options.schema()?);
    Ok(Database { target, _private: Some(private) })
}
