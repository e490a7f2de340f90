import { Compile } from 'typebox/compile'
import { MusterError } from '#shared/errors'
import { FeedMessage } from '#shared/feed'
import type { PositionedChange } from './replica.ts'

/** Longest line that is accepted, bytes; the longest that is sent (1 000 members, a policy) is below 256 KiB. */
const LINE_LIMIT_BYTES = 1 << 20

const NEWLINE = 0x0a

const schema = Compile(FeedMessage)

/**
 * Reads NDJSON and yields the complete messages of each chunk.
 *
 * A line that is not a message of the schema ends the stream, unknown kinds of change included: a broker that skips
 * what it does not understand could skip a kind of hold.
 * @throws MusterError invalid_request
 */
export async function* readMessages(body: AsyncIterable<Uint8Array>): AsyncGenerator<FeedMessage[]> {
  let rest: Buffer[] = []
  let restBytes = 0
  for await (const chunk of body) {
    const lines: Buffer[] = []
    let start = 0
    for (let end = chunk.indexOf(NEWLINE); end !== -1; end = chunk.indexOf(NEWLINE, start)) {
      lines.push(Buffer.concat([...rest, chunk.subarray(start, end)]))
      rest = []
      restBytes = 0
      start = end + 1
    }
    rest.push(Buffer.from(chunk.subarray(start)))
    restBytes += chunk.length - start
    if (restBytes > LINE_LIMIT_BYTES) throw refused(`a line is longer than ${LINE_LIMIT_BYTES} bytes`)
    yield lines.filter((line) => line.length > 0).map(parseMessage)
  }
}

/** @throws MusterError invalid_request when the line is not a message that this broker knows */
export function parseMessage(line: Buffer): FeedMessage {
  if (line.length > LINE_LIMIT_BYTES) throw refused(`a line is longer than ${LINE_LIMIT_BYTES} bytes`)
  let message: unknown
  try {
    message = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(line))
  } catch (cause) {
    throw refused('a line is not JSON', cause)
  }
  if (!schema.Check(message)) throw refused(`a message is not in the schema: ${shown(line)}`)
  return message
}

/** Enough of the line to name the fault; the stream carries no secrets. */
function shown(line: Buffer): string {
  return line.subarray(0, 200).toString('latin1')
}

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
