//! Limits that no machine checks decay: file and function lengths, leftovers, words, links between documents.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
/// What must not be left behind, put together so that this file does not find itself.
const LEFTOVERS: [&str; 5] = [
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("XX", "X:"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
];
/// Words that the glossary replaces.
const WORDS: [(&str, &str); 4] =
    [("split-brain", "partition"), ("split brain", "partition"), ("netsplit", "partition"), ("replica set", "copies")];

/// Everything that git would take in.
fn files() -> Result<Vec<PathBuf>> {
    let args = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let out = Command::new("git").args(args).output().context("cannot run git")?;
    let list = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(list.lines().map(PathBuf::from).filter(|p| p.is_file()).collect())
}

/// Fails with all that is wrong.
pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for path in files()? {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let rust = path.extension().is_some_and(|e| e == "rs");
        if rust {
            check_lengths(&path, &text, &mut wrong);
        }
        if rust || path.extension().is_some_and(|e| e == "md") {
            check_words(&path, &text, &mut wrong);
        }
        if path.extension().is_some_and(|e| e == "md") {
            check_links(&path, &text, &mut wrong);
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("not tidy:\n{}", wrong.join("\n")) }
}

fn check_lengths(path: &Path, text: &str, wrong: &mut Vec<String>) {
    let code: Vec<&str> = text.lines().take_while(|l| *l != "#[cfg(test)]").collect();
    if code.len() > FILE_LINES_MAX {
        wrong.push(format!("{}: {} lines; at most {FILE_LINES_MAX}", path.display(), code.len()));
    }
    let lines: Vec<&str> = text.lines().collect();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let head =
            line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ").trim_start_matches("async ");
        if !head.starts_with("fn ") {
            continue;
        }
        // As rustfmt lays it out, a function ends with a brace at its own indent.
        let end = lines[start..].iter().position(|l| *l == format!("{}}}", " ".repeat(indent)));
        let len = end.map_or(0, |end| end + 1);
        if len > FUNCTION_LINES_MAX {
            wrong.push(format!(
                "{}:{}: a function of {len} lines; at most {FUNCTION_LINES_MAX}",
                path.display(),
                start + 1
            ));
        }
    }
}

fn check_words(path: &Path, text: &str, wrong: &mut Vec<String>) {
    for (n, line) in text.lines().enumerate() {
        if let Some(word) = LEFTOVERS.iter().find(|w| line.contains(**w)) {
            wrong.push(format!("{}:{}: left behind: {word}", path.display(), n + 1));
        }
        // This table names the words itself.
        let table = path.ends_with("tidy.rs");
        if let Some((word, better)) = WORDS.iter().find(|(w, _)| line.to_lowercase().contains(w) && !table) {
            wrong.push(format!("{}:{}: {word}: the glossary says {better}", path.display(), n + 1));
        }
    }
}

/// Links between our own documents must lead somewhere.
fn check_links(path: &Path, text: &str, wrong: &mut Vec<String>) {
    for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let file = target.split('#').next().unwrap_or_default();
        let outside = target.contains("://") || file.is_empty();
        if !outside && !path.parent().unwrap_or(Path::new("")).join(file).exists() {
            wrong.push(format!("{}: a link to {file}, which is not there", path.display()));
        }
    }
}
