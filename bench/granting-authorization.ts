import type { Link } from '../broker/mqtt/mqtt-client.ts'

/** The verdicts of a broker that lets everybody say and hear everything; who connects is judged as ever. */
export * from '../broker/judge/authorization.ts'

export function judgePublish(): null {
  return null
}

export function judgeSubscribe({ filters }: Link, { topic }: { readonly topic: string }): null {
  filters.add(topic)
  return null
}

export function mayForward(): boolean {
  return true
}

export function isGrantedStill(): boolean {
  return true
}
