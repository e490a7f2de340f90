import { Compile } from 'typebox/compile'
import { isTopicFilter } from '../topic-syntax.ts'
import { CAP_NAMES, CAP_RANGES, type CapName } from './caps.ts'
import { readNetwork } from './networks.ts'
import { Policy, type PolicyRule, type RuleList, type RuleObject } from './schema.ts'
import { readTemplate, unknownVariables } from './topic-template.ts'

/** What is wrong with a policy, and where: `publish`, 2, `topic`. */
export interface PolicyFault {
  readonly path: readonly (string | number)[]
  readonly message: string
}

const schema = Compile(Policy)
const FAULTS_MAX = 20

/** Faults of a policy as somebody wrote it, those of its form first; none when it can be used as it is. */
export function policyFaults(policy: unknown): PolicyFault[] {
  const faults = schema.Check(policy) ? meaningFaults(policy) : formFaults(policy)
  return faults.slice(0, FAULTS_MAX)
}

/** `publish[2].topic` */
export function pathText(path: PolicyFault['path']): string {
  return path
    .map((part, at) => (typeof part === 'number' ? `[${part}]` : at === 0 ? part : `.${part}`))
    .join('')
}

const SECTIONS = ['publish', 'subscribe', 'limits']
const RULE_FIELDS = ['topic', 'effect', 'maxQos', 'retain', 'maxPayloadBytes', 'perSecond', 'burst', 'when']

function formFaults(policy: unknown): PolicyFault[] {
  if (!isObject(policy)) return [{ path: [], message: 'must be an object with "publish" and "subscribe"' }]
  const unknown = Object.keys(policy).filter((name) => !SECTIONS.includes(name))
  const lists = (['publish', 'subscribe'] as const).flatMap((list) => listFaults(policy[list], list))
  const caps = Object.hasOwn(policy, 'limits') ? capFaults(policy.limits) : []
  const found = [...unknown.map((name) => ({ path: [name], message: 'is not known' })), ...lists, ...caps]
  return found.length > 0 ? found : [{ path: [], message: 'has not the form of a policy' }]
}

function capFaults(limits: unknown): PolicyFault[] {
  if (!isObject(limits))
    return [{ path: ['limits'], message: 'must be an object with a number for each limit' }]
  return Object.keys(limits).flatMap((name) => {
    const message = capFault(name, limits[name])
    return message === null ? [] : [{ path: ['limits', name], message }]
  })
}

function capFault(name: string, value: unknown): string | null {
  if (!Object.hasOwn(CAP_RANGES, name)) return `is not known; limits are ${CAP_NAMES.join(', ')}`
  const [least, most] = CAP_RANGES[name as CapName] // by the line before
  if (Number.isInteger(value) && (value as number) >= least && (value as number) <= most) return null // it is a number
  return `must be a whole number from ${least} to ${most}, not ${shown(value)}`
}

function listFaults(rules: unknown, list: RuleList): PolicyFault[] {
  if (!Array.isArray(rules)) return [{ path: [list], message: 'must be a list of rules' }]
  if (rules.length > 100) return [{ path: [list], message: `has ${rules.length} rules, 100 are the most` }]
  return rules.flatMap((rule: unknown, at) => {
    const probe = { publish: [], subscribe: [], [list]: [rule] }
    if (schema.Check(probe)) return []
    return ruleFormFaults(rule).map(({ path, message }) => ({ path: [list, at, ...path], message }))
  })
}

function ruleFormFaults(rule: unknown): PolicyFault[] {
  if (typeof rule === 'string') return [{ path: [], message: 'a topic has 1 to 1024 characters' }]
  if (!isObject(rule)) return [{ path: [], message: 'must be a topic, or an object with "topic"' }]
  const unknown = Object.keys(rule).find((name) => !RULE_FIELDS.includes(name))
  if (unknown !== undefined) {
    return [{ path: [unknown], message: `is not known; a rule has ${RULE_FIELDS.join(', ')}` }]
  }
  if (!('topic' in rule)) return [{ path: [], message: 'has no "topic"' }]
  for (const name of Object.keys(rule)) {
    const probe = { publish: [{ topic: 'x', [name]: rule[name] }], subscribe: [] }
    if (!schema.Check(probe)) return [{ path: [name], message: `cannot be ${shown(rule[name])}` }]
  }
  return [{ path: [], message: 'has not the form of a rule' }]
}

function shown(value: unknown): string {
  return (JSON.stringify(value) ?? 'nothing').slice(0, 60)
}

function meaningFaults(policy: Policy): PolicyFault[] {
  return (['publish', 'subscribe'] as const).flatMap((list) =>
    policy[list].flatMap((rule, at) => ruleFaults(rule, list).map((fault) => under([list, at], fault))),
  )
}

function under(path: PolicyFault['path'], fault: PolicyFault): PolicyFault {
  return { ...fault, path: [...path, ...fault.path] }
}

function ruleFaults(rule: PolicyRule, list: RuleList): PolicyFault[] {
  if (typeof rule === 'string') return topicFaults(rule).map((message) => ({ path: [], message }))
  return [
    ...topicFaults(rule.topic).map((message) => ({ path: ['topic'], message })),
    ...limitFaults(rule, list),
    ...(rule.when?.sources ?? []).flatMap((text, at) =>
      readNetwork(text) === null
        ? [{ path: ['when', 'sources', at], message: `"${text}" is no network` }]
        : [],
    ),
  ]
}

function topicFaults(topic: string): string[] {
  const template = readTemplate(topic)
  if (template === null) return ['a variable is not closed: "${" needs a "}"']
  const unknown = unknownVariables(template)
  if (unknown.length > 0) {
    return [
      `"\${${unknown[0]}}" is not one of \${device.id}, \${device.fleet}, \${device.batch}, \${device.attributes.<name>}`,
    ]
  }
  const filled = template.parts.map((part, at) => (at % 2 === 0 ? part : 'x')).join('')
  if (!isTopicFilter(filled))
    return [
      'it is no topic filter: a wildcard fills its level, # is the last, and no character is one that MQTT forbids',
    ]
  return filled.startsWith('$') ? ['topics that begin with $ are granted to nobody'] : []
}

const LIMITS = ['maxQos', 'retain', 'maxPayloadBytes', 'perSecond', 'burst'] as const

function limitFaults(rule: RuleObject, list: RuleList): PolicyFault[] {
  const limits = LIMITS.filter((name) => rule[name] !== undefined)
  if (rule.effect === 'deny') {
    return limits.map((name) => ({ path: [name], message: 'a rule that denies has no limits' }))
  }
  const wrong = list === 'subscribe' ? limits.filter((name) => name !== 'maxQos') : []
  const faults = wrong.map((name) => ({ path: [name], message: 'only a rule of "publish" has this limit' }))
  const isAlone = rule.burst !== undefined && rule.perSecond === undefined
  return isAlone ? [...faults, { path: ['burst'], message: 'needs "perSecond"' }] : faults
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
