/** Finds where in a JSON text a value stands, for messages about what a file says. */
export interface Place {
  readonly line: number
  readonly column: number
}

/**
 * Line and column, from 1, of the value at a path; of the last value on the way where the path goes on in nothing.
 * @param text valid JSON
 */
export function placeInJson(text: string, path: readonly (string | number)[]): Place {
  let at = space(text, 0)
  for (const step of path) {
    const next =
      typeof step === 'number' ? element(text, { at, index: step }) : member(text, { at, name: step })
    if (next === null) break
    at = next
  }
  return placeOf(text, at)
}

/**
 * The first name that an object has twice, and where: of two values JSON keeps the last, and who wrote the first does not hear of it.
 * @param text valid JSON
 */
export function repeatedName(text: string): (Place & { readonly name: string }) | null {
  const open: (Set<string> | null)[] = []
  for (let at = 0; at < text.length; at++) {
    if (text[at] === '{') open.push(new Set())
    else if (text[at] === '[') open.push(null)
    else if (text[at] === '}' || text[at] === ']') open.pop()
    if (text[at] !== '"') continue
    const end = stringEnd(text, at)
    const names = text[space(text, end)] === ':' ? open.at(-1) : null
    if (names) {
      const name: string = JSON.parse(text.slice(at, end))
      if (names.has(name)) return { name, ...placeOf(text, at) }
      names.add(name)
    }
    at = end - 1
  }
  return null
}

function placeOf(text: string, at: number): Place {
  const before = text.slice(0, at).split('\n')
  return { line: before.length, column: (before.at(-1)?.length ?? 0) + 1 }
}

function space(text: string, at: number): number {
  let next = at
  while (' \t\r\n'.includes(text[next] ?? 'x')) next++
  return next
}

function element(text: string, { at, index }: { at: number; index: number }): number | null {
  if (text[at] !== '[') return null
  let next = space(text, at + 1)
  for (let count = 0; text[next] !== ']' && next < text.length; count++) {
    if (count === index) return next
    next = afterComma(text, skip(text, next))
  }
  return null
}

function member(text: string, { at, name }: { at: number; name: string }): number | null {
  if (text[at] !== '{') return null
  let found: number | null = null
  let next = space(text, at + 1)
  while (text[next] === '"') {
    const end = skip(text, next)
    const value = space(text, space(text, end) + 1) // after the colon
    if (JSON.parse(text.slice(next, end)) === name) found = value // the last of several counts
    next = afterComma(text, skip(text, value))
  }
  return found
}

function afterComma(text: string, at: number): number {
  const next = space(text, at)
  return text[next] === ',' ? space(text, next + 1) : next
}

/** Where the value that begins here ends. */
function skip(text: string, at: number): number {
  if (text[at] === '"') return stringEnd(text, at)
  if (text[at] !== '{' && text[at] !== '[') {
    const rest = /^[^,\]}\s]*/.exec(text.slice(at, at + 64))?.[0].length ?? 0
    return at + Math.max(1, rest)
  }
  let depth = 0
  for (let next = at; next < text.length; next++) {
    if (text[next] === '"') next = stringEnd(text, next) - 1
    else if (text[next] === '{' || text[next] === '[') depth++
    else if ((text[next] === '}' || text[next] === ']') && --depth === 0) return next + 1
  }
  return text.length
}

function stringEnd(text: string, at: number): number {
  let next = at + 1
  while (next < text.length && text[next] !== '"') next += text[next] === '\\' ? 2 : 1
  return next + 1
}
