//! Finds PostgreSQL's server programs on this machine.
//!
//! It must not run any of them, other than to ask for a version or a path.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use nix::unistd::Uid;

/// Older ones are no longer maintained.
const OLDEST_MAJOR: u32 = 14;

/// Where packages put the programs: a directory, what the names in it that
/// count begin with, followed by a version, and where the programs are below.
const INSTALLATIONS: [(&str, &str, &str); 7] = [
    ("usr/lib/postgresql", "", "bin"),                          // Debian
    ("usr", "pgsql-", "bin"),                                   // postgresql.org's RPMs
    ("usr/lib", "postgresql", "bin"),                           // openSUSE
    ("usr/libexec", "postgresql", ""),                          // Alpine
    ("opt/homebrew/opt", "postgresql@", "bin"),                 // Homebrew, Apple silicon
    ("usr/local/opt", "postgresql@", "bin"),                    // Homebrew, Intel
    ("Applications/Postgres.app/Contents/Versions", "", "bin"), // Postgres.app
];

/// Where to search.
#[derive(Debug)]
pub(super) struct Places {
    /// The value of `$PATH`.
    pub(super) path: OsString,
    /// The directory in which the well-known ones lie: `/`.
    pub(super) root: PathBuf,
}

impl Places {
    #[expect(clippy::disallowed_methods, reason = "where programs are is no configuration of ours")]
    pub(super) fn of_this_machine() -> Self {
        Self { path: std::env::var_os("PATH").unwrap_or_default(), root: PathBuf::from("/") }
    }

    /// Directories that hold both programs, in the order of preference.
    fn candidates(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let on_path: Vec<PathBuf> = std::env::split_paths(&self.path).filter(|dir| dir.is_absolute()).collect();
        for dir in &on_path {
            consider(dir, &mut found);
        }
        for dir in &on_path {
            if let Some(bindir) = bindir_of(&dir.join("pg_config")) {
                consider(&bindir, &mut found);
            }
        }
        for (parent, prefix, below) in INSTALLATIONS {
            for installation in newest_first(&self.root.join(parent), prefix) {
                consider(&installation.join(below), &mut found);
            }
        }
        consider(&self.root.join("opt/homebrew/bin"), &mut found);
        found
    }

    fn install_command(&self) -> String {
        let os_release = fs::read_to_string(self.root.join("etc/os-release")).unwrap_or_default();
        let command = install_command(&os_release, cfg!(target_os = "macos"));
        if Uid::effective().is_root() { command.trim_start_matches("sudo ").to_owned() } else { command.to_owned() }
    }
}

/// `initdb` and `postgres` of one installation.
#[derive(Debug, PartialEq)]
pub(super) struct Programs {
    bindir: PathBuf,
    /// The major version, like 17.
    pub(super) major: u32,
}

impl Programs {
    /// Finds the programs; of the major version `wanted`, if there is one,
    /// because a cluster is readable by the version alone that made it.
    pub(super) fn find(places: &Places, wanted: Option<u32>) -> Result<Self> {
        let mut others = Vec::new();
        for bindir in places.candidates() {
            let Some(major) = major_of(&bindir.join("postgres")) else {
                continue;
            };
            if major >= OLDEST_MAJOR && wanted.is_none_or(|wanted| wanted == major) {
                return Ok(Self { bindir, major });
            }
            others.push(format!("{major} ({})", bindir.display()));
        }
        let install = places.install_command();
        let found = others.join(", ");
        match wanted {
            None if others.is_empty() => bail!(
                "PostgreSQL's server programs (initdb, postgres) are not on this machine; install them with `{install}`, or set DATABASE_URL"
            ),
            None => bail!(
                "PostgreSQL {OLDEST_MAJOR} or newer is needed, but this machine has {found}; install one with `{install}`, or set DATABASE_URL"
            ),
            Some(wanted) if others.is_empty() => bail!(
                "the private database was made by PostgreSQL {wanted}, and no PostgreSQL server is on this machine; install that version (`{install}` brings the newest)"
            ),
            Some(wanted) => bail!(
                "the private database was made by PostgreSQL {wanted}, but this machine has {found}; install PostgreSQL {wanted}, or move the database away to start afresh"
            ),
        }
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.bindir.join("initdb")
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.bindir.join("postgres")
    }
}

/// Adds the directory where `dir/postgres` really is, if `initdb` is there too.
/// (`/usr/local/bin/postgres` may be a link, and its sibling of another version.)
fn consider(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(postgres) = fs::canonicalize(dir.join("postgres")) else {
        return;
    };
    let Some(bindir) = postgres.parent() else {
        return;
    };
    let complete = ["postgres", "initdb"].iter().all(|program| is_executable(&bindir.join(program)));
    if complete && !found.iter().any(|known| known == bindir) {
        found.push(bindir.to_owned());
    }
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The entries of `parent` that begin with `prefix`, by version, 17 before 9.6;
/// those without a version last.
fn newest_first(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else {
        return Vec::new();
    };
    let mut versions: Vec<(Vec<u32>, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(prefix)?;
            let numbers = version.split('.').map_while(|n| n.parse().ok()).collect();
            Some((numbers, entry.path()))
        })
        .collect();
    versions.sort_by(|a, b| b.cmp(a));
    versions.into_iter().map(|(_, path)| path).collect()
}

fn bindir_of(pg_config: &Path) -> Option<PathBuf> {
    let output = is_executable(pg_config).then(|| stdout_of(pg_config, "--bindir"))??;
    Some(PathBuf::from(output.trim_end()))
}

/// `postgres (PostgreSQL) 15.3 (Debian 15.3-1)` is 15, and `18beta1` is 18.
fn major_of(postgres: &Path) -> Option<u32> {
    let output = stdout_of(postgres, "--version")?;
    let version = output.split("(PostgreSQL)").nth(1)?.trim_start();
    let end = version.find(|c: char| !c.is_ascii_digit());
    version[..end.unwrap_or(version.len())].parse().ok()
}

fn stdout_of(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

/// The command for the system that `os_release` (its `/etc/os-release`) tells.
fn install_command(os_release: &str, macos: bool) -> &'static str {
    if macos {
        return "brew install postgresql@17";
    }
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().replace(['"', '\''], "")
    };
    let ids = format!("{} {}", value("ID="), value("ID_LIKE="));
    for id in ids.split_whitespace() {
        return match id {
            "debian" | "ubuntu" => "sudo apt-get install -y postgresql",
            "amzn" => "sudo dnf install -y postgresql17-server",
            "fedora" | "rhel" | "centos" => "sudo dnf install -y postgresql-server",
            "alpine" => "sudo apk add postgresql",
            "arch" => "sudo pacman -S --noconfirm postgresql",
            "suse" | "opensuse" => "sudo zypper install -y postgresql-server",
            _ => continue,
        };
    }
    "your system's package manager (the package is often called postgresql or postgresql-server)"
}

#[cfg(test)]
#[path = "programs_tests.rs"]
mod tests;
