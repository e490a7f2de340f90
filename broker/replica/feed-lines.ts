import { Compile } from 'typebox/compile'
import { isMusterError, MusterError } from '#shared/errors'
import { Change, FeedMessage } from '#shared/feed'
import { pathText, policyFaults } from '#shared/policy/check'
import type { PositionedChange } from './replica.ts'

/** Longest line that is accepted, bytes; the longest that is sent (1 000 members, a policy) is below 256 KiB. */
const LINE_LIMIT_BYTES = 1 << 20

const NEWLINE = 0x0a

const schema = Compile(FeedMessage)

/**
 * Reads NDJSON and yields the complete messages of each chunk.
 *
 * A line that is not a message of the schema ends the stream, unknown kinds of change included: a broker that skips
 * what it does not understand could skip a kind of hold. What came before it counts.
 * @throws MusterError invalid_request
 */
export async function* readMessages(body: AsyncIterable<Uint8Array>): AsyncGenerator<FeedMessage[]> {
  let rest: Uint8Array[] = []
  let restBytes = 0
  for await (const chunk of body) {
    const end = chunk.lastIndexOf(NEWLINE) + 1
    if (end > 0) {
      const lines = decode(Buffer.concat([...rest, chunk.subarray(0, end)])).split('\n')
      rest = []
      restBytes = 0
      const { messages, fault } = parseMessages(lines.filter((line) => line.length > 0))
      if (messages.length > 0) yield messages
      if (fault !== null) throw fault
    }
    rest.push(Buffer.from(chunk.subarray(end)))
    restBytes += chunk.length - end
    if (restBytes > LINE_LIMIT_BYTES) throw refused(`a line is longer than ${LINE_LIMIT_BYTES} bytes`)
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

function decode(lines: Buffer): string {
  try {
    return utf8.decode(lines)
  } catch (cause) {
    throw refused('a line is not UTF-8', cause)
  }
}

function parseMessages(lines: readonly string[]): { messages: FeedMessage[]; fault: MusterError | null } {
  const messages: FeedMessage[] = []
  for (const line of lines) {
    try {
      messages.push(parseMessage(line))
    } catch (error) {
      if (!isMusterError(error)) throw error
      return { messages, fault: error }
    }
  }
  return { messages, fault: null }
}

/** @throws MusterError invalid_request when the line is not a message that this broker knows */
function parseMessage(line: string): FeedMessage {
  if (line.length > LINE_LIMIT_BYTES) throw refused(`a line is longer than ${LINE_LIMIT_BYTES} bytes`)
  let message: unknown
  try {
    message = JSON.parse(line)
  } catch (cause) {
    throw refused('a line is not JSON', cause)
  }
  if (schema.Check(message)) return message
  const unknown = unknownKind(message)
  if (unknown !== null) throw refused(`this version does not know ${unknown}; fix: update this broker`)
  throw refused(`a message is not in the schema: ${line.slice(0, SHOWN)}`)
}

/** What a newer registry may say. */
function unknownKind(message: unknown): string | null {
  const { type, change } = Object(message) as { type?: unknown; change?: Named | null } // each is looked at
  if (typeof type !== 'string' || typeof change?.kind !== 'string') return null
  if (!KINDS.has(change.kind)) return `changes of the kind "${change.kind.slice(0, SHOWN_NAME)}"`
  const subject: Named = Object(change[change.kind])
  const [fault] = subject.policy === undefined ? [] : policyFaults(subject.policy)
  if (fault === undefined) return null
  const path = pathText(fault.path).slice(0, SHOWN_NAME)
  const what = path === '' ? 'the policy' : `"${path}" in the policy`
  return `${what} of ${change.kind} "${`${subject.id}`.slice(0, SHOWN_NAME)}"`
}

type Named = Readonly<Record<string, unknown>>

const KINDS: ReadonlySet<string> = new Set(Change.anyOf.map(({ properties }) => properties.kind.const))
const SHOWN_NAME = 40

/** Enough of the line to name the fault; the stream carries no secrets. */
const SHOWN = 200

function refused(why: string, cause?: unknown): MusterError {
  return new MusterError('invalid_request', `Cannot follow the change stream: ${why}`, { cause })
}

/** Work in one turn of the event loop: a change counts one, a slice of members as many as it has. */
const TURN_WEIGHT = 500

/** What one turn of the event loop does. */
export type Turn =
  | { readonly type: 'changes'; readonly changes: PositionedChange[] }
  | Exclude<FeedMessage, { type: 'change' }>

/** Cuts messages into runs of changes up to a weight, and single other messages. */
export function* turns(messages: readonly FeedMessage[]): Generator<Turn> {
  let changes: PositionedChange[] = []
  let weight = 0
  for (const message of messages) {
    if (message.type === 'change') {
      changes.push(message)
      weight += message.change.kind === 'members' ? message.change.devices.length : 1
      if (weight < TURN_WEIGHT) continue
    }
    if (changes.length > 0) yield { type: 'changes', changes }
    changes = []
    weight = 0
    if (message.type !== 'change') yield message
  }
  if (changes.length > 0) yield { type: 'changes', changes }
}

/** The first position that was passed over; what came before is left out. */
export function missingAfter(position: number, changes: readonly PositionedChange[]): number | null {
  let newest = position
  for (const change of changes) {
    if (change.position > newest + 1) return newest + 1
    newest = Math.max(newest, change.position)
  }
  return null
}

/** Those that rise from the position on; a change that is delivered again, late, would undo what followed it. */
export function messagesAfter(position: number, messages: readonly PositionedChange[]): PositionedChange[] {
  let newest = position
  return messages.filter((message) => {
    const isNew = message.position > newest
    if (isNew) newest = message.position
    return isNew
  })
}
