import { ANSWER, answers } from '../door/packet-octets.ts'
import type { SessionStore } from '../store/session-store.ts'
import { cutOff, isGone, type MqttClient } from './mqtt-client.ts'

/** What becomes of an answer: whatever is owed for it is owed now, or once it is on disk; or the long way has to find out. */
export type Owed = 'now' | 'later' | 'long'

/**
 * What clients answer for messages, without Aedes: it makes several promises for each, and a client may send four
 * thousand of them at once. One for which nothing waits costs a look into a map. One that is awaited is written once,
 * in the transaction of this turn, however often it is repeated before that is done: it is answered when it is on disk,
 * in the order in which it came [MQTT-4.6.0-4].
 */
export class Answers {
  readonly #store: SessionStore

  constructor(store: SessionStore) {
    this.#store = store
  }

  /** PUBACK or PUBCOMP: the message leaves the queue. Nothing is owed for it. */
  done(client: MqttClient, messageId: number): void {
    const { group, sessions } = this.#store
    const entry = client.clean ? undefined : sessions.queues.byMessageId(client.id, messageId)
    if (entry === undefined || !entry.isSent || entry.isLeaving) return
    const leaving = sessions.queues.leaving(client.id, [entry])
    group.push(leaving.write, (error) => {
      if (error !== null) {
        leaving.takeBack()
        return cutOff(client)
      }
      leaving.done()
      this.#store.answered(client.id)
    })
  }

  /** PUBREC: PUBREL is owed. */
  received(client: MqttClient, messageId: number): Owed {
    const { group, sessions } = this.#store
    if (client.clean) return 'now'
    const entry = sessions.queues.byMessageId(client.id, messageId)
    if (entry?.isReleasing === true) return 'later'
    if (entry === undefined || !entry.isSent || entry.isLeaving || entry.state === 'released') {
      // A retained message is in no queue, and PUBREL is owed for it all the same.
      if (group.isIdle) return 'now'
      group.push(null, () => answer(client, ANSWER.pubrel + messageId))
      return 'later'
    }
    entry.isReleasing = true
    group.push(
      () => sessions.queues.writeReleased(client.id, entry),
      (error) => {
        entry.isReleasing = false
        if (error !== null) return cutOff(client)
        entry.state = 'released'
        answer(client, ANSWER.pubrel + messageId)
      },
    )
    return 'later'
  }

  /** PUBREL: PUBCOMP is owed. */
  released(client: MqttClient, messageId: number): Owed {
    const { group, sessions } = this.#store
    const state = sessions.incoming.release(client.id, messageId)
    if (state === 'unknown') return 'now'
    if (state === 'releasing') return 'later'
    if (state === 'routing') return 'long'
    const complete = (error: Error | null) => {
      if (error !== null) {
        sessions.incoming.keep(client.id, messageId)
        return cutOff(client)
      }
      sessions.incoming.remove(client.id, messageId)
      client._inboundInflight.delete(messageId)
      answer(client, ANSWER.pubcomp + messageId)
    }
    group.push(client.clean ? null : () => sessions.writeReleased(client.id, messageId), complete)
    return 'later'
  }
}

function answer(client: MqttClient, octets: number): void {
  if (isGone(client)) return
  const { conn } = client
  conn.cork()
  conn.write(answers([octets]))
  conn.uncork()
}
