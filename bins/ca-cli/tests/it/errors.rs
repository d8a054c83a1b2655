//! Errors of all libraries, as `caused by:` lines show them.

use std::fs;
use std::path::Path;

/// A text that repeats its source would be told twice: whoever shows an error
/// shows the chain of its sources.
#[test]
fn no_error_says_its_source_in_its_own_text() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates");
    let (mut wrapping, mut wrong) = (0, Vec::new());
    for directory in fs::read_dir(crates).expect("the libraries") {
        for file in sources(&directory.expect("an entry").path().join("src")) {
            let text = fs::read_to_string(&file).expect("a source");
            for variant in text.split("#[error(").skip(1) {
                let Some((said, rest)) = variant.split_once(")]") else { continue };
                // Up to the next attribute of an error, or the end of the type.
                let fields = rest.split("\n}").next().unwrap_or(rest);
                let is_wrapping = ["#[source]", "#[from]", " source:"].iter().any(|mark| fields.contains(mark));
                if !is_wrapping || said == "transparent" {
                    continue;
                }
                wrapping += 1;
                // Sources are the first field of tuples, and called so in the others.
                if said.contains("{0") || said.contains("{source") || said.contains(".0)") {
                    wrong.push(format!("{}: {said}", file.display()));
                }
            }
        }
    }
    assert!(wrapping >= 30, "only {wrapping} errors with a source were found");
    assert!(wrong.is_empty(), "these say their source themselves:\n{}", wrong.join("\n"));
}

fn sources(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
