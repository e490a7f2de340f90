/**
 * What MQTT forbids in its strings and this broker refuses with it: NUL, surrogates (ill-formed UTF-8 arrives as
 * U+FFFD), control characters and non-characters (MQTT 3.1.1 section 1.5.3).
 */
const FORBIDDEN = /[\u{0}-\u{1f}\u{7f}-\u{9f}\u{d800}-\u{dfff}\u{fdd0}-\u{fdef}\u{fffd}-\u{ffff}]/u

/** True when a string carries no character that MQTT forbids or lets a server refuse. */
export function isCleanText(text: string): boolean {
  return !FORBIDDEN.test(text)
}

/** True for a topic name: at least one character, no wildcard (MQTT 3.1.1 sections 3.3.2.1 and 4.7). */
export function isTopicName(text: string): boolean {
  return text.length > 0 && !text.includes('+') && !text.includes('#') && isCleanText(text)
}

/** True for a topic filter: a wildcard fills its level, and `#` is the last one (MQTT 3.1.1 section 4.7.1). */
export function isTopicFilter(text: string): boolean {
  if (text.length === 0 || !isCleanText(text)) return false
  const levels = text.split('/')
  const last = levels.length - 1
  return levels.every((level, at) => {
    if (level === '+') return true
    if (level === '#') return at === last
    return !level.includes('+') && !level.includes('#')
  })
}

/** How many levels a topic or a filter has. */
export function levelsOf(text: string): number {
  let levels = 1
  for (let at = text.indexOf('/'); at !== -1; at = text.indexOf('/', at + 1)) levels++
  return levels
}
