//! Tables for people: as wide as their content, or as the terminal if that is narrower.

use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};

/// The least width of a column that is wrapped or cut.
const NARROWEST: usize = 12;
const GAP: &str = "  ";

/// What to do with a column that there is no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Always whole.
    Needed,
    /// Cut, with `…` at the cut, when nothing else helps.
    Cut,
    /// Wrapped within its column.
    Wrap,
    /// Left out; the highest number first.
    Drop(u8),
}

pub(crate) struct Column<'t> {
    pub(crate) title: &'t str,
    pub(crate) room: Room,
    pub(crate) right: bool,
}

impl<'t> Column<'t> {
    pub(crate) const fn new(title: &'t str, room: Room) -> Self {
        Self { title, room, right: false }
    }

    /// Numbers line up at their end.
    pub(crate) const fn number(title: &'static str, room: Room) -> Self {
        Self { title, room, right: true }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Cell {
    pub(crate) text: String,
    pub(crate) style: Style,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, style: Style::new() }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Cell {
    pub(crate) fn coloured(text: impl ToString, colour: Option<AnsiColor>) -> Self {
        let style = colour.map_or_else(Style::new, |colour| colour.on_default());
        Self { text: text.to_string(), style }
    }
}

/// Where a table is printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paper {
    /// Unlimited unless it is a terminal.
    pub(crate) width: Option<usize>,
    pub(crate) colour: bool,
}

impl Paper {
    /// Standard output.
    pub(crate) fn stdout() -> Self {
        if !std::io::stdout().is_terminal() {
            return Self { width: None, colour: false };
        }
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let width = terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| width.0.into());
        Self { width, colour: !plain }
    }
}

pub(crate) fn render(columns: &[Column<'_>], rows: &[Vec<Cell>], paper: Paper) -> String {
    let widths = widths(columns, rows, paper.width);
    let mut out = String::new();
    let titles: Vec<Cell> = columns.iter().map(|column| column.title.into()).collect();
    for row in std::iter::once(&titles).chain(rows) {
        line(&mut out, columns, row, &widths, paper.colour);
    }
    out
}

/// How wide each column may be; `None` = left out.
fn widths(columns: &[Column<'_>], rows: &[Vec<Cell>], limit: Option<usize>) -> Vec<Option<usize>> {
    let natural = |(index, column): (usize, &Column<'_>)| {
        let cells = rows.iter().map(|row| row[index].text.chars().count());
        cells.chain([column.title.chars().count()]).max()
    };
    let mut widths: Vec<Option<usize>> = columns.iter().enumerate().map(natural).collect();
    let Some(limit) = limit else { return widths };
    let total = |widths: &[Option<usize>]| {
        let shown = widths.iter().flatten();
        (shown.clone().sum::<usize>() + shown.count().saturating_sub(1) * GAP.len()).saturating_sub(limit)
    };
    let shrink = |widths: &mut [Option<usize>], room: Room| {
        for (index, _) in columns.iter().enumerate().filter(|(_, column)| column.room == room) {
            let excess = total(widths);
            widths[index] = widths[index].map(|width| width.saturating_sub(excess).max(width.min(NARROWEST)));
        }
    };
    shrink(&mut widths, Room::Wrap);
    let mut optional: Vec<(u8, usize)> = columns
        .iter()
        .enumerate()
        .filter_map(
            |(index, column)| if let Room::Drop(rank) = column.room { Some((rank, index)) } else { None },
        )
        .collect();
    optional.sort_unstable();
    while total(&widths) > 0 {
        let Some((_, index)) = optional.pop() else { break };
        widths[index] = None;
    }
    shrink(&mut widths, Room::Cut);
    // What dropping has freed more than was needed goes back to the text that was squeezed.
    let free = |widths: &[Option<usize>]| {
        let shown = widths.iter().flatten();
        limit.saturating_sub(shown.clone().sum::<usize>() + shown.count().saturating_sub(1) * GAP.len())
    };
    for (index, column) in columns.iter().enumerate().filter(|(_, column)| column.room == Room::Wrap) {
        let free = free(&widths);
        widths[index] =
            widths[index].map(|width| (width + free).min(natural((index, column)).unwrap_or(width)));
    }
    widths
}

/// A row, which takes several lines if a cell is wrapped.
fn line(out: &mut String, columns: &[Column<'_>], row: &[Cell], widths: &[Option<usize>], colour: bool) {
    let shown: Vec<(&Column<'_>, &Cell, usize)> = columns
        .iter()
        .zip(row)
        .zip(widths)
        .filter_map(|((column, cell), width)| Some((column, cell, (*width)?)))
        .collect();
    let pieces: Vec<Vec<String>> = shown
        .iter()
        .map(|(column, cell, width)| match column.room {
            Room::Wrap => wrap(&cell.text, *width),
            _ => vec![cut(&cell.text, *width)],
        })
        .collect();
    for number in 0..pieces.iter().map(Vec::len).max().unwrap_or(0) {
        let mut text = String::new();
        for ((column, cell, width), pieces) in shown.iter().zip(&pieces) {
            let piece = pieces.get(number).map_or("", String::as_str);
            let gap = " ".repeat(width.saturating_sub(piece.chars().count()));
            let (before, after) = if column.right { (gap.as_str(), "") } else { ("", gap.as_str()) };
            let (on, off) = if colour && !piece.is_empty() {
                (cell.style.render().to_string(), cell.style.render_reset().to_string())
            } else {
                Default::default()
            };
            text += &format!("{before}{on}{piece}{off}{after}{GAP}");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
}

/// The beginning and the end of `text`, which tell more than its middle.
fn cut(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let end = (width.saturating_sub(1)) / 2;
    let begin = width.saturating_sub(1) - end;
    let chars: Vec<char> = text.chars().collect();
    chars[..begin].iter().chain(['…'].iter()).chain(&chars[length - end..]).collect()
}

/// `text` in lines; a word that is longer than a line is cut.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let word = cut(word, width);
        let last = lines.len() - 1;
        let used = lines[last].chars().count();
        if used == 0 {
            lines[last] = word;
        } else if used + 1 + word.chars().count() <= width {
            lines[last] = format!("{} {word}", lines[last]);
        } else {
            lines.push(word);
        }
    }
    lines
}
