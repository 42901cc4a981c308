//! Unsafe code is denied by a lint, and the lint is lifted in one place.

use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![path] };
    entries.flat_map(of).filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn unsafe_code_is_allowed_in_one_place_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"deny\""), "without the lint there is nothing to lift");
    let mut allowed = Vec::new();
    for path in sources(&root.join("src")) {
        let text = std::fs::read_to_string(&path).unwrap();
        // Nothing but an attribute that names the lint, or a group that has it, lets an `unsafe` pass.
        let lifted = text.matches("unsafe_code").count() + text.matches("allow(warnings").count();
        let used =
            text.matches("unsafe {").count() + text.matches("unsafe fn").count() + text.matches("unsafe impl").count();
        if lifted + used > 0 {
            allowed.push((path.strip_prefix(root).unwrap().display().to_string(), lifted, used));
        }
    }
    assert_eq!(allowed, [("src/dev_postgres/process.rs".to_owned(), 1, 1)]);
}
