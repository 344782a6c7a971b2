//! How an error leaves the program: one line on stderr that says what to do, and an exit code.

use std::io;
use std::process::ExitCode;

use storage::ErrorKind;

use crate::output;
use crate::store::passwords_of;

/// Prints `error` without the passwords of `urls`, and returns the exit code.
///
/// Nobody reads any more after a broken pipe of the output, so that one is silent and no failure.
pub(crate) fn report(error: &anyhow::Error, urls: &[String]) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    output::complain(&line_of(error, urls));
    ExitCode::FAILURE
}

/// Returns `error`, its causes and the advice for its kind, in one line.
pub(crate) fn line_of(error: &anyhow::Error, urls: &[String]) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // Some errors repeat their cause in their own words.
        if !text.contains(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    if let Some(advice) = error.downcast_ref().and_then(advice_for) {
        text.push_str("; ");
        text.push_str(advice);
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let passwords = urls.iter().flat_map(|url| passwords_of(url));
    passwords.fold(line, |line, password| line.replace(&password, "***"))
}

fn advice_for(error: &storage::Error) -> Option<&'static str> {
    let is_of_a_file = error.operation() == Some("load_config");
    Some(match error.kind() {
        ErrorKind::Config | ErrorKind::NotFound if is_of_a_file => {
            "correct it, or name another one with --config; `storage help run` tells more"
        }
        ErrorKind::Config => "correct --url (or STORAGE_URL); `storage --help` shows examples",
        ErrorKind::Unsupported => "use another backend for this",
        ErrorKind::Unavailable => "see that the store is there and reachable, then repeat",
        ErrorKind::Busy => "wait for the other program to finish, then repeat",
        ErrorKind::Timeout => "repeat, or ask for less",
        ErrorKind::StorageFull => "make room, then repeat",
        ErrorKind::PermissionDenied => "check the owner and the rights of the store",
        ErrorKind::Corrupt => "run `storage check`, and restore a backup if it confirms",
        ErrorKind::VersionMismatch => {
            "use a newer version of this program, or open an older store for writing once"
        }
        ErrorKind::Io => "see that the path is right and the disk works, then repeat",
        ErrorKind::Internal => "please report it",
        _ => return None,
    })
}

/// Whether nobody reads the output any more.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    if error.chain().any(<dyn std::error::Error>::is::<storage::Error>) {
        // The connection to a store broke.
        return false;
    }
    let ios = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    ios.into_iter().any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage::Error;

    #[test]
    fn one_line_with_advice_and_without_the_password() {
        let cause = io::Error::other("no route\nto u:s3cret@host");
        let error = Error::new(ErrorKind::Unavailable, "cannot connect").with_source(cause);
        let line = line_of(
            &anyhow::Error::new(error),
            &["sqlite://x.db".to_owned(), "postgres://u:s3cret@host/db".to_owned()],
        );
        assert!(!line.contains('\n') && !line.contains("s3cret"), "{line}");
        assert!(line.contains("no route to u:***@host; see that"), "{line}");
    }

    #[test]
    fn a_broken_pipe_is_found_behind_context() {
        let error = anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(is_broken_pipe(&error.context("cannot write")));
        let cause = io::Error::from(io::ErrorKind::BrokenPipe);
        let error = Error::new(ErrorKind::Unavailable, "the connection broke").with_source(cause);
        assert!(!is_broken_pipe(&anyhow::Error::new(error).context("cannot import")));
    }
}
