import type { Sqlite } from '#shared/sqlite'

interface MessageRow {
  readonly seq: number
  readonly topic: string
  readonly qos: number
  readonly bytes: number
}
interface EntryRow {
  readonly client: string
  readonly seq: number
  readonly messageId: number | null
  readonly qos: number
  readonly released: number
}
interface NewMessage {
  readonly seq: number
  readonly topic: string
  readonly payload: Buffer
  readonly qos: number
}
export type QueueRows = ReturnType<typeof prepareQueueRows>

/** What is read and written of messages and queues; rows come in the order in which they were routed. */
export function prepareQueueRows(db: Sqlite) {
  const insertMessage = db.prepare<[number, string, Buffer, number]>(
    'INSERT INTO messages VALUES (?, ?, ?, ?)',
  )
  const deleteMessage = db.prepare<[number]>('DELETE FROM messages WHERE seq = ?')
  const insertEntry = db.prepare<[string, number, number | null, number]>(
    'INSERT INTO queue (client, seq, message_id, qos) VALUES (?, ?, ?, ?)',
  )
  const updateEntry = db.prepare<[number | null, number, string, number]>(
    'UPDATE queue SET message_id = ?, released = ? WHERE client = ? AND seq = ?',
  )
  const deleteEntry = db.prepare<[string, number]>('DELETE FROM queue WHERE client = ? AND seq = ?')
  const payload = db.prepare<[number], Buffer>('SELECT payload FROM messages WHERE seq = ?').pluck()
  const messages = db.prepare<[], MessageRow>(
    'SELECT seq, topic, qos, length(payload) + length(topic) AS bytes FROM messages ORDER BY seq',
  )
  const entries = db.prepare<[], EntryRow>(
    'SELECT client, seq, message_id AS messageId, qos, released FROM queue ORDER BY client, seq',
  )
  return {
    messages: () => messages.iterate(),
    entries: () => entries.iterate(),
    insertMessage: (m: NewMessage) => void insertMessage.run(m.seq, m.topic, m.payload, m.qos),
    deleteMessage: (seq: number) => void deleteMessage.run(seq),
    insertEntry: (e: Omit<EntryRow, 'released'>) => void insertEntry.run(e.client, e.seq, e.messageId, e.qos),
    updateEntry: (e: Omit<EntryRow, 'qos'>) => void updateEntry.run(e.messageId, e.released, e.client, e.seq),
    deleteEntry: (client: string, seq: number) => void deleteEntry.run(client, seq),
    /** @throws RangeError when there is no such message */
    payload(seq: number): Buffer {
      const octets = payload.get(seq)
      if (octets === undefined) throw new RangeError(`No message ${seq}`)
      return octets
    },
  }
}
