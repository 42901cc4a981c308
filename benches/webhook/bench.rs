//! What every measurement works with: the filled database, the events, and pgbench.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::Options;
use crate::database::Database;
use crate::events::Events;
use crate::load::{self, Load};
use crate::pgbench::{Pgbench, Script, Until};
use crate::support::server::Server;

/// How many subscriptions there are, each of an account of its own.
pub const SUBSCRIPTIONS: u64 = 10_000;

/// How many events there are in each measurement of a quick run.
pub const QUICK_EVENTS: usize = 400;

/// How many events warm up a server, and tell how many fill the time.
const WARM_UP_EVENTS: usize = 3_000;

/// How many events arrive before there is an account. PostgreSQL keeps a general plan from a statement's sixth use on.
const EVENTS_WHILE_EMPTY: usize = 50;

/// Everything that is running.
pub struct Bench {
    pub options: Options,
    pub scratch: PathBuf,
    pub database: Database,
    pub events: Events,
    pgbench: Option<Pgbench>,
}

impl Bench {
    /// Starts and fills the database.
    pub fn prepare(options: Options, scratch: PathBuf) -> Result<Self> {
        let mut database = Database::start(&scratch.join("postgres"))?;
        database.make_plain_tables()?;
        if options.from_empty {
            database.never_analyse()?;
        }
        database.fill(SUBSCRIPTIONS)?;
        let events = Events::new(SUBSCRIPTIONS, options.changing)?;
        let pgbench = Pgbench::prepare(&database.program_dir()?, &scratch, database.url(), &events, SUBSCRIPTIONS)?;
        Ok(Self { options, scratch, database, events, pgbench })
    }

    pub fn has_pgbench(&self) -> bool {
        self.pgbench.is_some()
    }

    /// A server that has just been started: what an earlier measurement left in its memory is not for this one.
    /// With `--from-empty` its statements are prepared, and planned for the first times, while all tables are empty.
    pub fn start_server(&mut self) -> Result<Server> {
        if !self.options.from_empty {
            return Server::start(&self.scratch, &self.database.url(), &self.options.log);
        }
        self.database.empty()?;
        let server = Server::start(&self.scratch, &self.database.url(), &self.options.log)?;
        let requests = self.events.requests(EVENTS_WHILE_EMPTY, server.secret());
        load::deliver(&server, 1, &requests, &["parked"])?.without_errors()?;
        self.database.empty()?;
        self.database.fill(SUBSCRIPTIONS)?;
        Ok(server)
    }

    /// How many events the next measurements should have each. Warms the server up.
    pub fn warm_up(&mut self, server: &Server, connections: usize) -> Result<usize> {
        if self.options.quick {
            return Ok(QUICK_EVENTS.max(connections));
        }
        let requests = self.events.requests(WARM_UP_EVENTS, server.secret());
        let load = load::deliver(server, connections, &requests, &["applied"])?.without_errors()?;
        self.database.clear()?;
        Ok(((load.per_second * f64::from(self.options.seconds)) as usize).max(connections))
    }

    /// Delivers events that nobody has seen. Also gives the requests, to be sent again.
    pub fn first_deliveries(
        &mut self,
        server: &Server,
        connections: usize,
        count: usize,
    ) -> Result<(Load, Vec<Vec<u8>>)> {
        let requests = self.events.requests(count, server.secret());
        let load = load::deliver(server, connections, &requests, &["applied"])?.without_errors()?;
        check_first_deliveries(&mut self.database, count)?;
        Ok((load, requests))
    }

    /// Runs pgbench for as long as our own measurements take, and forgets what it wrote. `None` where there is none.
    pub fn run_pgbench(&mut self, script: Script, clients: usize) -> Result<Option<Load>> {
        let Some(pgbench) = &self.pgbench else {
            return Ok(None);
        };
        let until = if self.options.quick {
            Until::Transactions(QUICK_EVENTS.div_ceil(clients))
        } else {
            Until::Seconds(self.options.seconds)
        };
        let (load, transactions) = pgbench.run(script, clients, until)?;
        let written =
            if script == Script::Plain { self.database.plain_events()? } else { self.database.events(&["applied"])? };
        ensure!(written == transactions, "pgbench did not write what it says");
        self.database.clear()?;
        Ok(Some(load))
    }
}

/// That this many events are recorded since the mark, and shown by their subscriptions.
pub fn check_first_deliveries(database: &mut Database, count: usize) -> Result<()> {
    let count = u64::try_from(count)?;
    ensure!(database.events(&["applied"])? == count, "not every event was recorded");
    ensure!(database.newest_shown()? == count.min(SUBSCRIPTIONS), "not every subscription shows its newest event");
    Ok(())
}
