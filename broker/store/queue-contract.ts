/**
 * What Aedes asks of queues: for its contract, and for answers that came in pieces; those that came whole are taken by
 * `mqtt/answers.ts`.
 */
import type { CommitGroup } from './commit-group.ts'
import { isClient, type Owner } from './owner.ts'
import { asPacket, type Entry, type Message } from './queue-entry.ts'
import type { QueueRows } from './queue-rows.ts'
import type { StoredSessions } from './stored-sessions.ts'

export interface Identified {
  readonly messageId?: number
}

export type Update = Identified & Partial<Message> & { cmd?: string }

export interface QueueContractDeps {
  readonly queueRows: QueueRows
  readonly group: CommitGroup
  readonly sessions: StoredSessions
}

/** A PUBREC has come, or Aedes' contract gives a message its packet identifier. */
export async function updateEntry(
  { queueRows, group, sessions: { queues } }: QueueContractDeps,
  { client, packet }: { client: Owner; packet: Update },
): Promise<void> {
  const { messageId = 0, brokerId, brokerCounter } = packet
  const isSame = ({ message }: Entry) =>
    message.brokerId === brokerId && message.brokerCounter === brokerCounter
  const entry =
    packet.cmd === 'pubrel'
      ? queues.byMessageId(client.id, messageId)
      : queues.entries(client.id).find(isSame)
  if (entry === undefined || (isClient(client) && !entry.isSent)) {
    // A retained message of QoS 2: it is in no queue, and PUBREL is owed to it all the same.
    if (isClient(client)) return
    throw new Error('no such packet')
  }
  const released = packet.cmd === 'pubrel' ? 1 : 0
  const row = { client: client.id, seq: entry.message.seq, messageId, released }
  await group.commit(
    () => queueRows.updateEntry(row),
    () => {
      if (released === 1) entry.state = 'released'
      if (entry.messageId !== messageId) queues.setMessageId(client.id, entry, messageId)
    },
  )
}

/** PUBACK or PUBCOMP has come. What was not sent to this client stays. Null when there is nothing that it answers for. */
export async function dropAnswered(
  { sessions }: QueueContractDeps,
  { client, messageId }: { client: Owner; messageId: number | undefined },
): Promise<object | null> {
  const entry = messageId === undefined ? undefined : sessions.queues.byMessageId(client.id, messageId)
  if (entry === undefined || (isClient(client) && !entry.isSent)) return null
  const found = asPacket(entry, entry.message.payload ?? '')
  await sessions.drop(client.id, [entry])
  return found
}
