//! A trace file line by line, in bounded memory.

use std::io::{BufRead, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::error::{MAX_LINE, Problem, WorkloadError, excerpt};

/// Reads lines of at most [`MAX_LINE`] bytes, blank lines left out.
pub(crate) struct Lines {
    reader: Box<dyn BufRead + Send>,
    path: PathBuf,
    number: u64,
    consumed: u64,
    buffer: Vec<u8>,
}

/// One line, without its line end.
pub(crate) struct Line<'a> {
    /// The text.
    pub(crate) text: &'a str,
    /// False for a last line without a line end, which may be cut off.
    pub(crate) whole: bool,
}

impl Lines {
    pub(crate) fn new(reader: Box<dyn BufRead + Send>, path: &Path) -> Self {
        Lines { reader, path: path.to_owned(), number: 0, consumed: 0, buffer: Vec::new() }
    }

    /// Bytes read so far.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// The number of the line read last, from 1.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// An error at the line read last.
    pub(crate) fn error(&self, problem: Problem) -> WorkloadError {
        WorkloadError::Line { path: self.path.clone(), line: self.number, problem }
    }

    /// The next line which is not blank, or none at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Line<'_>>, WorkloadError> {
        loop {
            self.buffer.clear();
            let mut limited = self.reader.by_ref().take(MAX_LINE as u64 + 1);
            let read = loop {
                match limited.read_until(b'\n', &mut self.buffer) {
                    Ok(_) => break Ok(self.buffer.len()),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => break Err(error),
                }
            };
            let read = match read {
                Ok(0) => return Ok(None),
                Ok(read) => read,
                Err(source) => {
                    return Err(WorkloadError::Read {
                        path: self.path.clone(),
                        line: self.number + 1,
                        source,
                    });
                }
            };
            self.number += 1;
            self.consumed += read as u64;
            let whole = self.buffer.last() == Some(&b'\n');
            if !whole && read > MAX_LINE {
                return Err(self.error(Problem::TooLong));
            }
            let start = if self.number == 1 && self.buffer.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
            if self.buffer[start..].iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return match std::str::from_utf8(&self.buffer[start..]) {
                Ok(text) => Ok(Some(Line { text: text.trim(), whole })),
                Err(error) => {
                    let (offset, lossy) = (error.valid_up_to(), String::from_utf8_lossy(&self.buffer));
                    Err(self.error(if whole {
                        Problem::NotText { offset }
                    } else {
                        Problem::Truncated { found: excerpt(&lossy), why: "not UTF-8 text".to_owned() }
                    }))
                }
            };
        }
    }
}
