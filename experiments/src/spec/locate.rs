//! The line on which a key of a YAML document stands.
//!
//! Neither `serde_yaml`'s values nor serde's errors carry positions, so the block structure of the text is
//! followed by its indentation. In flow style (`{a: 1}`), which has no lines of its own, the line of the
//! innermost block key is given.

/// One step of a path into a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// A key of a map.
    Key(String),
    /// An entry of a list, from 0.
    Index(usize),
}

/// A path as `a.b.0.c`.
pub(crate) fn show(path: &[Segment]) -> String {
    let parts: Vec<String> = path
        .iter()
        .map(|segment| match segment {
            Segment::Key(key) if key.contains('.') => format!("\"{key}\""),
            Segment::Key(key) => key.clone(),
            Segment::Index(index) => index.to_string(),
        })
        .collect();
    parts.join(".")
}

#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    indent: usize,
    content: &'a str,
}

impl Line<'_> {
    fn is_item(&self) -> bool {
        self.content == "-" || self.content.starts_with("- ")
    }

    fn has_key(&self, key: &str) -> bool {
        let content = self.content;
        let after = ["\"", "'", ""]
            .iter()
            .find_map(|quote| content.strip_prefix(quote)?.strip_prefix(key)?.strip_prefix(quote));
        after.is_some_and(|rest| {
            let rest = rest.trim_start();
            rest == ":" || rest.starts_with(": ")
        })
    }
}

/// The line, from 1, of the longest part of `path` that the text spells out; none when not even the first
/// key is there.
pub(crate) fn line_of(text: &str, path: &[Segment]) -> Option<usize> {
    let mut region: Vec<Line<'_>> = text
        .lines()
        .enumerate()
        .map(|(i, line)| {
            let content = line.trim_start_matches(' ');
            Line { number: i + 1, indent: line.len() - content.len(), content: content.trim_end() }
        })
        .filter(|line| !line.content.is_empty() && !line.content.starts_with('#') && line.content != "---")
        .collect();
    let mut found = None;
    for segment in path {
        let Some(indent) = region.first().map(|line| line.indent) else { break };
        let start = match segment {
            Segment::Key(key) => region.iter().position(|l| l.indent == indent && l.has_key(key)),
            Segment::Index(index) => region
                .iter()
                .enumerate()
                .filter(|(_, l)| l.indent == indent && l.is_item())
                .nth(*index)
                .map(|(i, _)| i),
        };
        let Some(start) = start else { break };
        let line = region[start];
        found = Some(line.number);
        let mut inner: Vec<Line<'_>> = Vec::new();
        if matches!(segment, Segment::Index(_)) {
            // "- key: value": the entry's first key stands behind the dash.
            let rest = line.content[1..].trim_start();
            if !rest.is_empty() {
                let indent = indent + line.content.len() - rest.len();
                inner.push(Line { number: line.number, indent, content: rest });
            }
        }
        // A list may stand at the indentation of its key.
        let inside = |l: &Line<'_>| {
            l.indent > indent || (matches!(segment, Segment::Key(_)) && l.indent == indent && l.is_item())
        };
        inner.extend(region[start + 1..].iter().take_while(|l| inside(l)));
        region = inner;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Vec<Segment> {
        text.split('.')
            .map(|s| s.parse().map_or_else(|_| Segment::Key(s.to_owned()), Segment::Index))
            .collect()
    }

    const TEXT: &str = "\
# comment
name: x
cluster:
  prefill:
    tp: 8   # ranks

    pp: 2
  decode: {tp: 4,
    pp: 1}
faults:
- at: 3s
  link-down:
    host: 1
-
  at: 4s
'tp': 9
";

    #[test]
    fn finds_keys_and_entries() {
        for (at, line) in [
            ("name", 2),
            ("cluster", 3),
            ("cluster.prefill.tp", 5),
            ("cluster.prefill.pp", 7),
            ("cluster.decode.tp", 8),
            ("cluster.prefill.nothing", 4),
            ("faults.0.at", 11),
            ("faults.0.link-down.host", 13),
            ("faults.1", 14),
            ("faults.1.at", 15),
            ("tp", 16),
        ] {
            assert_eq!(line_of(TEXT, &path(at)), Some(line), "{at}");
        }
        assert_eq!(line_of(TEXT, &path("nothing")), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "([ \\-a:\n\"']|\\PC){0,80}", at in "[a-c0-2.]{0,8}") {
            let _ = line_of(&text, &path(&at));
        }
    }
}
