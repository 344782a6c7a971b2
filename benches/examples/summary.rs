//! Shows a file of results as Markdown: every bar, then the rivals. With `--readme` it writes the
//! tables into `README.md` and `docs/guide/performance.md` instead, see `scripts/bench`.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;

use storage_benches::readme::{
    DOCUMENTS, bars_table, figures_table, origin, replace, rivals_table, root,
};
use storage_benches::report::Results;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--readme", file] => write_documents(&Results::read(Path::new(file))?),
        [file] => {
            show(&Results::read(Path::new(file))?);
            Ok(())
        }
        _ => Err("usage: summary [--readme] FILE".into()),
    }
}

fn show(results: &Results) {
    println!("## Bars\n\n{}\n{}", origin(results), bars_table(results));
    println!("## Rivals\n\n{}", rivals_table(results));
}

fn write_documents(results: &Results) -> Result<(), Box<dyn Error>> {
    if results.quick {
        return Err("a quick run is not for the documents".into());
    }
    let [readme, page] = DOCUMENTS.map(|document| root().join(document));
    let (origin, rivals) = (origin(results), rivals_table(results));
    write(&readme, &format!("{rivals}\n{origin}"))?;
    let (bars, figures) = (bars_table(results), figures_table(results));
    let everything = format!(
        "{origin}\n### Rivals\n\n{rivals}\n### Bars\n\n{bars}\n### Every figure\n\n{figures}"
    );
    write(&page, &everything)
}

fn write(path: &Path, generated: &str) -> Result<(), Box<dyn Error>> {
    let document = std::fs::read_to_string(path)?;
    let replaced = replace(&document, generated);
    let replaced = replaced.ok_or_else(|| format!("{} has no markers", path.display()))?;
    Ok(std::fs::write(path, replaced)?)
}
