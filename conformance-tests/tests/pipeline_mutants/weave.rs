//! Puts bugs into source text, each behind its switch.

use std::ops::Range;

use super::Mutant;

/// Stands in the root of the copy: whether the bug of that name is switched on.
pub(super) const SWITCH: &str = r#"
pub(crate) fn mutated(name: &str) -> bool {
    static NAME: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("STORAGE_MUTANT").ok());
    NAME.as_deref() == Some(name)
}
"#;

/// Returns `text` with all bugs of a file in it. Several may replace the same place.
pub(super) fn weave<'a>(
    text: &str,
    mutants: impl IntoIterator<Item = &'a Mutant>,
) -> Result<String, String> {
    let mut places: Vec<(Range<usize>, Vec<&Mutant>)> = Vec::new();
    for mutant in mutants {
        let place = find(text, mutant.right).map_err(|found| {
            format!("{}: what is right stands {found} times in {}", mutant.name, mutant.file)
        })?;
        match places.iter_mut().find(|(other, _)| *other == place) {
            Some((_, mutants)) => mutants.push(mutant),
            None => places.push((place, vec![mutant])),
        }
    }
    places.sort_by_key(|(place, _)| place.start);
    let mut woven = String::with_capacity(2 * text.len());
    let mut at = 0;
    for (place, mutants) in places {
        if place.start < at {
            return Err(format!("{}: two bugs overlap there", mutants[0].name));
        }
        woven.push_str(&text[at..place.start]);
        woven.push_str(&switched(&text[place.clone()], &mutants));
        at = place.end;
    }
    woven.push_str(&text[at..]);
    Ok(woven)
}

/// What is right, unless a switch is thrown.
fn switched(right: &str, mutants: &[&Mutant]) -> String {
    let mut code = String::new();
    for Mutant { name, wrong, .. } in mutants {
        code.push_str(&format!("if crate::mutated({name:?}) {{ {wrong} }} else "));
    }
    code.push_str(&format!("{{ {right} }}"));
    // Statements stand as they are, an expression may be a part of a larger one.
    if right.ends_with([';', '}']) { code } else { format!("({code})") }
}

/// Where what `right` means stands in `text`, or how often if that is not once.
fn find(text: &str, right: &str) -> Result<Range<usize>, usize> {
    let (before, rest) = right.split_once('«').unwrap_or(("", right));
    let (part, after) = rest.split_once('»').unwrap_or((rest, ""));
    let starts = text.char_indices().map(|(index, _)| index);
    let place = |start| {
        let part_start = skip(text, start, before)?;
        let end = skip(text, part_start, part)?;
        skip(text, end, after)?;
        let space = text[part_start..].len() - text[part_start..].trim_start().len();
        Some(part_start + space..end)
    };
    let at_word = |start: &usize| !text[*start..].starts_with(char::is_whitespace);
    let mut found: Vec<_> = starts.filter(at_word).filter_map(place).collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        count => Err(count),
    }
}

/// Goes past `part` in `text`, if that is what stands at `start`; white space does not count.
fn skip(text: &str, start: usize, part: &str) -> Option<usize> {
    let mut characters = text[start..].char_indices().filter(|(_, c)| !c.is_whitespace());
    let mut end = start;
    for expected in part.chars().filter(|c| !c.is_whitespace()) {
        let (index, found) = characters.next()?;
        if found != expected {
            return None;
        }
        end = start + index + found.len_utf8();
    }
    Some(end)
}
