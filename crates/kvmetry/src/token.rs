//! `kvmetry token`: makes tokens for the HTTP port, lists and revokes them. The running server need not be told.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use anyhow::bail;

use crate::cli::{Token, TokenAction, print};
use crate::clock::{Clock, SystemClock, rfc3339};
use crate::config::Config;
use crate::datadir;
use crate::http::tokens;

/// Does what is asked. On standard output stands the token and nothing else, so that it can go into a file.
///
/// # Errors
/// A name that is taken, a file that cannot be changed, standard output that cannot be written: then the token is
/// revoked again, because nobody has seen it.
pub(crate) fn token(config: &Config, asked: &Token) -> anyhow::Result<()> {
    datadir::demand_mounted(&config.data_dir)?;
    let path = config.http.tokens_file(&config.data_dir);
    if asked.action.is_some() && (asked.name.is_some() || !asked.scopes.is_empty()) {
        bail!("--scope and --name are for making a token: say either them, or list, or revoke NAME");
    }
    match &asked.action {
        None => {
            let created = rfc3339(SystemClock.wall_ns());
            let new = tokens::make(&path, asked.name.as_deref(), &asked.scopes, created)?;
            if let Err(error) = print(format!("{}\n", new.secret).as_bytes()) {
                tokens::revoke(&path, &new.name)?;
                // Without its source: a reader who has gone is a failure here.
                bail!("{error:#}; the token was revoked");
            }
            let kept = path.display();
            let name = &new.name;
            say(format_args!("{name}: shown this once; its hash is in {kept}"));
        }
        Some(TokenAction::List) => print(table(&tokens::list(&path)?).as_bytes())?,
        Some(TokenAction::Revoke { name }) => {
            if tokens::revoke(&path, name)? == 0 {
                say(format_args!(
                    "that was the last one, and now nobody is let in: make another, or remove {} to open the port on \
                     loopback to everybody",
                    path.display()
                ));
            }
        }
    }
    Ok(())
}

/// For people, beside standard output; scripts need none of it.
fn say(what: std::fmt::Arguments<'_>) {
    if io::stderr().is_terminal() {
        let _ = writeln!(io::stderr(), "{what}");
    }
}

fn table(tokens: &[tokens::Token]) -> String {
    let rows: Vec<_> = std::iter::once(["NAME".to_owned(), "SCOPES".to_owned(), "CREATED".to_owned()])
        .chain(tokens.iter().map(|token| [token.name.clone(), token.scope_names(), token.created.clone()]))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let (name, scopes) = (width(0), width(1));
    rows.iter().fold(String::new(), |mut text, row| {
        let _ = writeln!(text, "{:name$}  {:scopes$}  {}", row[0], row[1], row[2]);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tokens::{Scope, TokensError};

    #[test]
    fn the_list_is_a_table() -> Result<(), TokensError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.json");
        assert_eq!(table(&tokens::list(&path)?), "NAME  SCOPES  CREATED\n");
        tokens::make(&path, Some("a-collector"), &[Scope::Write], "2026-11-22T21:48:59Z".to_owned())?;
        tokens::make(&path, Some("b"), &[Scope::Write, Scope::Read], "2026-11-23T00:00:00Z".to_owned())?;
        let expect = "NAME         SCOPES       CREATED\n\
                      a-collector  write        2026-11-22T21:48:59Z\n\
                      b            write, read  2026-11-23T00:00:00Z\n";
        assert_eq!(table(&tokens::list(&path)?), expect);
        Ok(())
    }
}
