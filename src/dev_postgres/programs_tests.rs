//! Tests of the search, with made-up trees; must not need PostgreSQL.

use super::*;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

struct Machine {
    tree: TempDir,
    path: Vec<PathBuf>,
}

impl Machine {
    fn new() -> Self {
        Self { tree: tempfile::tempdir().unwrap(), path: Vec::new() }
    }

    fn at(&self, path: &str) -> PathBuf {
        fs::canonicalize(&self.tree).unwrap().join(path)
    }

    fn program(&self, path: &str, output: &str) {
        let file = self.at(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        // By a shell of its own: a file that is open for writing, here or in a
        // child that another test is just starting, cannot be run.
        let made = Command::new("sh")
            .args(["-c", "printf '%s\\n' \"$2\" >\"$1\" && chmod 755 \"$1\"", "sh"])
            .arg(&file)
            .arg(format!("#!/bin/sh\necho '{output}'"))
            .status();
        assert!(made.unwrap().success());
    }

    fn postgres(&self, bindir: &str, version: &str) {
        self.program(&format!("{bindir}/postgres"), &format!("postgres (PostgreSQL) {version}"));
        self.program(&format!("{bindir}/initdb"), "");
    }

    fn on_path(mut self, dir: &str) -> Self {
        self.path.push(self.at(dir));
        self
    }

    fn find(&self, wanted: Option<u32>) -> Result<Programs> {
        let places = Places { path: std::env::join_paths(&self.path).unwrap(), root: self.at("") };
        Programs::find(&places, wanted)
    }

    fn found(&self, wanted: Option<u32>) -> (String, u32) {
        let programs = self.find(wanted).unwrap();
        let bindir = programs.bindir.strip_prefix(self.at("")).unwrap();
        (bindir.to_str().unwrap().to_owned(), programs.major)
    }

    fn message(&self, wanted: Option<u32>) -> String {
        self.find(wanted).unwrap_err().to_string()
    }
}

#[test]
fn the_path_comes_before_pg_config_and_packages() {
    let machine = Machine::new().on_path("own").on_path("dev");
    machine.postgres("usr/lib/postgresql/18/bin", "18.1");
    assert_eq!(machine.found(None), ("usr/lib/postgresql/18/bin".into(), 18));
    machine.postgres("other/bin", "16.4");
    machine.program("dev/pg_config", machine.at("other/bin").to_str().unwrap());
    assert_eq!(machine.found(None), ("other/bin".into(), 16));
    machine.postgres("own", "15.3 (Debian 15.3-1)");
    assert_eq!(machine.found(None), ("own".into(), 15));
}

#[test]
fn versions_are_compared_as_numbers() {
    let machine = Machine::new();
    for version in ["9.6", "14", "16"] {
        machine.postgres(&format!("usr/lib/postgresql/{version}/bin"), version);
    }
    assert_eq!(machine.found(None).1, 16);
}

#[test]
fn every_known_installation_is_found() {
    for bindir in [
        "usr/lib/postgresql/17/bin",
        "usr/pgsql-17/bin",
        "usr/lib/postgresql17/bin",
        "usr/libexec/postgresql17",
        "opt/homebrew/opt/postgresql@17/bin",
        "opt/homebrew/bin",
        "usr/local/opt/postgresql@17/bin",
        "Applications/Postgres.app/Contents/Versions/latest/bin",
    ] {
        let machine = Machine::new();
        machine.postgres(bindir, "17beta2");
        assert_eq!(machine.found(None), (bindir.into(), 17));
    }
}

#[test]
fn a_link_leads_to_the_installation_it_is_of() {
    let machine = Machine::new().on_path("usr/local/bin");
    machine.postgres("opt/pg/bin", "17.2");
    machine.program("usr/local/bin/initdb", "of another version");
    symlink(machine.at("opt/pg/bin/postgres"), machine.at("usr/local/bin/postgres")).unwrap();
    assert_eq!(machine.found(None), ("opt/pg/bin".into(), 17));
}

#[test]
fn a_postgres_without_initdb_does_not_count() {
    let machine = Machine::new().on_path("own");
    machine.program("own/postgres", "postgres (PostgreSQL) 17.2");
    assert!(machine.message(None).contains("are not on this machine"));
}

#[test]
fn a_cluster_gets_the_version_that_made_it() {
    let machine = Machine::new().on_path("own");
    machine.postgres("own", "17.2");
    machine.postgres("usr/lib/postgresql/15/bin", "15.3");
    assert_eq!(machine.found(Some(15)).1, 15);
    let message = machine.message(Some(16));
    assert!(message.contains("made by PostgreSQL 16"), "{message}");
    assert!(message.contains("has 17 ("), "{message}");
    assert!(message.contains("15 ("), "{message}");
    let message = Machine::new().message(Some(16));
    assert!(message.contains("no PostgreSQL server"), "{message}");
}

#[test]
fn old_and_broken_ones_are_passed_over() {
    let machine = Machine::new().on_path("broken");
    machine.postgres("usr/lib/postgresql/13/bin", "13.9");
    let message = machine.message(None);
    assert!(message.contains("14 or newer is needed"), "{message}");
    machine.program("broken/postgres", "nonsense");
    machine.program("broken/initdb", "");
    machine.postgres("usr/lib/postgresql/12/bin", "12.9");
    machine.postgres("usr/pgsql-14/bin", "14.1");
    assert_eq!(machine.found(None).1, 14);
}

#[test]
fn what_is_missing_is_one_line_with_the_command_to_get_it() {
    let machine = Machine::new();
    fs::create_dir(machine.at("etc")).unwrap();
    fs::write(machine.at("etc/os-release"), "ID=ubuntu\nID_LIKE=debian\n").unwrap();
    let message = machine.message(None);
    if !cfg!(target_os = "macos") {
        assert!(message.contains("apt-get install -y postgresql`"), "{message}");
    }
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn every_system_has_its_own_command() {
    let command = |os_release| install_command(os_release, false);
    assert!(command("NAME=x\nID=debian\n").contains("apt-get"));
    assert!(command("ID=linuxmint\nID_LIKE=\"ubuntu debian\"").contains("apt-get"));
    assert!(command("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"").contains("dnf"));
    assert!(command("ID=fedora").contains("dnf"));
    assert!(command("ID=alpine").contains("apk add"));
    assert!(command("ID=manjaro\nID_LIKE=arch").contains("pacman"));
    assert!(command("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"").contains("zypper"));
    assert!(command("").contains("package manager"));
    assert!(install_command("", true).starts_with("brew install"));
}
