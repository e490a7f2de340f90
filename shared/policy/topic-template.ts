/** Whom a policy is compiled for. What is not known is empty, and an empty variable grants nothing. */
export interface Subject {
  readonly id: string
  readonly fleet: string
  readonly batch?: string | null | undefined
  readonly attributes?: Readonly<Record<string, string>> | undefined
}

/** The topic of a rule, cut at its variables: text and names of variables take turns, text first. */
export interface TopicTemplate {
  readonly parts: readonly string[]
}

const FIXED: ReadonlySet<string> = new Set(['device.id', 'device.fleet', 'device.batch'])
const ATTRIBUTES = 'device.attributes.'
const ATTRIBUTE_NAME = /^[A-Za-z][A-Za-z0-9_.-]{0,31}$/

/** Null when a variable has no end. One pass, whatever the text is. */
export function readTemplate(text: string): TopicTemplate | null {
  const parts: string[] = []
  let at = 0
  for (let begin = text.indexOf('${'); begin !== -1; begin = text.indexOf('${', at)) {
    const end = text.indexOf('}', begin)
    if (end === -1) return null
    parts.push(text.slice(at, begin), text.slice(begin + 2, end))
    at = end + 1
  }
  return { parts: [...parts, text.slice(at)] }
}

/** Names of the variables that no device has. */
export function unknownVariables({ parts }: TopicTemplate): string[] {
  return parts.filter((name, at) => at % 2 === 1 && !isVariable(name))
}

function isVariable(name: string): boolean {
  return (
    FIXED.has(name) || (name.startsWith(ATTRIBUTES) && ATTRIBUTE_NAME.test(name.slice(ATTRIBUTES.length)))
  )
}

/** The filter for one device; null when the value of a variable is not exactly one level without wildcards. */
export function fill({ parts }: TopicTemplate, subject: Subject): string | null {
  let filter = parts[0] ?? ''
  for (let at = 1; at < parts.length; at += 2) {
    const value = variable(parts[at] ?? '', subject)
    if (value === '' || /[/+#$]/.test(value)) return null
    filter += value + (parts[at + 1] ?? '')
  }
  return filter
}

/**
 * The filter with `+` for each level whose variable has no value that can be used: for a rule that denies, because
 * that no value is known must not take the denial away.
 */
export function fillWidely(template: TopicTemplate, subject: Subject): string {
  const ANY = '\u0000'
  const parts = template.parts.map((part, at) => {
    if (at % 2 === 0) return part
    const value = variable(part, subject)
    return value === '' || /[/+#$]/.test(value) ? ANY : value
  })
  const levels = parts.join('').split('/')
  return levels.map((level) => (level.includes(ANY) ? '+' : level)).join('/')
}

function variable(name: string, { id, fleet, batch, attributes = {} }: Subject): string {
  switch (name) {
    case 'device.id':
      return id
    case 'device.fleet':
      return fleet
    case 'device.batch':
      return batch ?? ''
  }
  const attribute = name.slice(ATTRIBUTES.length)
  const isOwn = name.startsWith(ATTRIBUTES) && Object.hasOwn(attributes, attribute)
  const value: unknown = isOwn ? attributes[attribute] : ''
  return typeof value === 'string' ? value : ''
}
